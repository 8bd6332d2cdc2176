"""Judge a distilled set of any project: its accuracy compared with that of real images of the same storage.

``python -m pipeline.studies.judge SET --data NAME [--protocol NAME]`` judges a file and writes results/judged/ and
reports/judged/ (``make judge`` runs it).
"""

import argparse
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dreamlib import data as datasets
from dreamlib._engine.files import read_json, write_atomically, write_json
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import ParameterError
from dreamlib.evaluation import apply_view, evaluate, train_settings
from dreamlib.matching.unrolled import UNROLLED
from dreamlib.networks import build
from dreamlib.settings import PROTOCOL_INDEPENDENT, EvaluationParams, NetworkParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.trainer import TrainSettings
from pipeline import launch_notebook
from pipeline.failures import exit_status
from pipeline.params import find_root
from pipeline.project import Project
from pipeline.report.judged import BEST_SET, KMEANS, MIN_NETWORKS, RANDOM, THIS, answer, scores
from pipeline.stages.evaluation import content_hash, partial_results, seen_test_images, used_floats
from pipeline.studies.judged_baselines import best_set_of_same_storage, medoid_set, random_set
from pipeline.studies.judged_file import check_set, judging_project, open_sets, own_protocol

OTHERS = ("mlp", "lenet")  # evaluated in addition to the ConvNet, if the images are large enough for them
FOLDER = Path("results") / "judged"
NOTEBOOK = Path("notebooks") / "07_judge.ipynb"


@dataclass(frozen=True)
class Judgement:
    """The sets of one file, and how they are judged.

    project: see ``judging_project``.
    file: the file's path relative to the project.
    name: name of the results: the file's name and the protocol, and for a trial its number of epochs.
    sets: the file's experiments.
    protocol: the sets' own protocol.
    networks: number of networks trained on each set.
    epochs: epochs of their training; 0 for those of the protocols.
    command: command that reproduces it.
    """

    project: Project
    file: str
    name: str
    sets: tuple[SyntheticSet, ...]
    protocol: EvaluationParams
    networks: int
    epochs: int
    command: str

    @classmethod
    def open(
        cls,
        path: str,
        dataset: str,
        protocol: str = "",
        ipc: int = 0,
        stored: str = "",
        networks: int = MIN_NETWORKS,
        epochs: int = 0,
    ) -> "Judgement":
        """Open a file and check everything but the data, before any work.

        path, stored: see ``open_sets``.
        dataset: the data set that the file was distilled from.
        protocol: see ``own_protocol``.
        ipc: required number of stored images per class; 0 for any.
        networks, epochs: see ``Judgement``.

        Raise FileNotFoundError, ValueError or ParameterError, in one line with the remedy.
        """
        root = find_root()
        project = judging_project(root, dataset)
        file, sets = open_sets(root, str(path), dataset, ipc, stored)
        for number, synthetic in enumerate(sets):
            check_set(synthetic, project.info, ipc, f"{path}" + (f", experiment {number}," if number else ""))
        if networks < 1 or epochs < 0:
            raise ParameterError(
                f"networks = {networks}, epochs = {epochs}: give at least 1 network, and 0 epochs or more"
            )
        evaluation = own_protocol(project, file, sets[0], protocol)
        trial = f"-{epochs}-epochs" if epochs else ""
        stem = re.sub(r"[^\w.-]", "_", file.stem if file.is_file() else file.name)
        name = f"{stem}-{evaluation.protocol}{trial}"
        command = _command(path, dataset, protocol, ipc, stored, networks, epochs)
        return cls(project, os.path.relpath(file, root), name, tuple(sets), evaluation, networks, epochs, command)

    @cached_property
    def compared(self) -> list[tuple[str, int, SyntheticSet]]:
        """Every set on which networks are trained: method, seed (number of the experiment or draw), set.

        Random images are drawn once per experiment.
        """
        first, seeds = self.sets[0], range(len(self.sets))
        entries = [(THIS, seed, self.sets[seed]) for seed in seeds]
        entries += [(RANDOM, seed, random_set(self.project, first, seed)) for seed in seeds]
        entries.append((KMEANS, 0, medoid_set(self.project, first)))
        best = best_set_of_same_storage(self.project, first)
        return entries if best is None else [*entries, (BEST_SET, 0, best)]

    @property
    def pictures(self) -> Tensor:
        """The first ten pictures of each class of the first experiment, (K·n, C, H, W) in [0, 1].

        n is the size of the largest class, at most ten; smaller classes are padded with white.
        """
        first, pictures = self.sets[0], self.project.pictures(self.sets[0])
        count = min(10, max(first.class_sizes))
        white = pictures.new_ones(count, *pictures.shape[1:])
        by_class = pictures.split(first.class_sizes)
        return torch.cat([torch.cat([images[:count], white[len(images) :]]) for images in by_class])

    @property
    def baseline_pictures(self) -> dict[str, Tensor]:
        """Method → the first picture of each class (n, C, H, W) of its first set, for at most ten classes."""
        return {method: self._first_pictures(synthetic) for method, seed, synthetic in self.compared if seed == 0}

    def _first_pictures(self, synthetic: SyntheticSet) -> Tensor:
        labels = synthetic.labels.tolist()
        rows = [labels.index(label) for label in sorted(set(labels))[:10]]
        return self.project.pictures(synthetic)[rows]

    @property
    def settings(self) -> TrainSettings:
        """The training settings for the first experiment under its own protocol."""
        return train_settings(self.project.info, self.protocol, self.sets[0])

    def networks_and_views(self, method: str) -> Iterator[tuple[NetworkParams, str]]:
        """Yield the networks and views under which a method's sets are evaluated.

        A replay has no view without augmentation, and real images have nothing to replay.
        """
        convnet, full = NetworkParams(), method in (THIS, RANDOM)
        replayable = method == THIS or not self.protocol.replay
        if replayable:
            yield convnet, "protocol"
        yield convnet, "idc"
        if full and replayable:
            if not self.protocol.replay:
                yield convnet, "plain"
            yield convnet, "hard_labels"
            for name in OTHERS:
                if _fits(name, self.project.info):
                    yield NetworkParams(name=name), "protocol"

    def run(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Train and test all networks; return and write a row per network (see ``report.judged``) and the summary.

        Write results/judged/<name>/accuracies.csv and judgement.json. Networks already trained under the same
        settings, for example before an interruption, are not trained again.
        """
        began, rows, sets = time.perf_counter(), [], {}
        test = seen_test_images(self.project, self.sets[0])
        for method, seed, synthetic in self.compared:
            test_in_its_units = seen_test_images(self.project, synthetic) if method == BEST_SET else test
            for network, view in self.networks_and_views(method):
                rows += self._rows(method, seed, synthetic, network, view, test_in_its_units)
            sets.setdefault(method, self._storage(synthetic))
        table, folder = pd.DataFrame(rows), self.project.root / FOLDER / self.name
        summary = self._summary(table, sets)
        write_atomically(folder / "accuracies.csv", table.to_csv(index=False).encode())
        write_json(folder / "judgement.json", summary)
        self.project.record_timings(f"judge-{self.name}", {"total": time.perf_counter() - began})
        return table, summary

    def _rows(
        self, method: str, seed: int, synthetic: SyntheticSet, network: NetworkParams, view: str,
        test: tuple[LabeledImages, DatasetInfo],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        view_set, protocol = apply_view(view, synthetic, self.protocol)
        if self.epochs:
            protocol = protocol.model_copy(update={"epochs": self.epochs})
        name = f"judged-{self.project.params.dataset}-{method.replace(' ', '_')}"
        done = evaluate(
            view_set, *test, protocol, (network.name, network.options), self.project.compute, seed=seed, split="test",
            repeats=self.networks, label=f"{method} {seed}, {network.label}, {view}",
            partial=partial_results(self.project, name, view_set, protocol, network, seed),
        )  # fmt: skip
        shared = {"method": method, "seed": seed, "network": network.label, "matched": network == NetworkParams()}
        shared |= {"view": view, "protocol": protocol.protocol, "epochs": done.epochs}
        for accuracy in done.accuracies:
            yield shared | {"accuracy": accuracy}

    def _storage(self, synthetic: SyntheticSet) -> dict[str, Any]:
        """Return what a set stores; soft labels are counted, and a learned step size if the protocol uses it."""
        floats = used_floats(synthetic, self.protocol)
        return {
            "labels": "hard" if synthetic.soft_labels is None else "soft",
            "factor": synthetic.factor,
            "training_images": len(synthetic.decode()[1]),
            "stored_floats": floats,
            "bytes": 4 * floats,
        }

    def _summary(self, table: pd.DataFrame, sets: dict[str, Any]) -> dict[str, Any]:
        protocol, idc = self.protocol, EvaluationParams()
        own_epochs = self.sets[0].info[UNROLLED]["passes"] if protocol.replay else protocol.epochs
        protocol_epochs = {"protocol": own_epochs, "idc": idc.epochs}
        epochs = {
            view: int(table.epochs[(table.method == THIS) & (table.view == view)].iloc[0]) for view in protocol_epochs
        }
        values = scores(table, self.project.params.dataset)
        return {
            "name": self.name,
            "file": self.file,
            "command": self.command,
            "content": digest([content_hash(synthetic) for synthetic in self.sets]),
            "source": self.sets[0].info.get("source", {}),
            "dataset": self.project.params.dataset,
            "data_hash": self.project.data_hash,
            "protocol": protocol.protocol,
            "own_is_not_idc": not _is_idc(protocol),
            "protocol_epochs": protocol_epochs,
            "epochs": epochs,
            "compute": self.project.compute.describe(),
            "networks": self.networks,
            "experiments": len(self.sets),
            "sets": sets,
            "makers": self._makers(),
            "scores": {name: None if math.isnan(value) else value for name, value in values.items()},
        }

    def _makers(self) -> dict[str, dict[str, float]]:
        """Return mean, std and number of the accuracies that the set's authors stored in the file, by network."""
        stored: dict[str, list[float]] = {}
        for synthetic in self.sets:
            for network, accuracies in synthetic.info.get("stored_accuracies", {}).items():
                stored.setdefault(network, []).extend(accuracies)
        return {
            network: {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0, "networks": len(values)}
            for network, values in stored.items()
        }


def _command(path: str, dataset: str, protocol: str, ipc: int, stored: str, networks: int, epochs: int) -> str:
    """Return the command that repeats a judgement, without options that have their defaults.

    >>> _command("a set.pt", "cifar10", "dc", 0, "", MIN_NETWORKS, 0)
    "make judge SET='a set.pt' DATA=cifar10 PROTOCOL=dc"
    >>> _command("set.pt", "cifar10", "", 0, "labels=logits", 1, 10)
    'python -m pipeline.studies.judge set.pt --data cifar10 --stored labels=logits --networks 1 --epochs 10'
    """
    variables = {"data": dataset, "protocol": protocol, "ipc": ipc, "stored": stored}
    trial = {"networks": networks if networks != MIN_NETWORKS else 0, "epochs": epochs}
    shown = {key: shlex.quote(str(value)) for key, value in (variables | trial).items() if value}
    if not any(trial.values()):
        return f"make judge SET={shlex.quote(path)} " + " ".join(f"{key.upper()}={text}" for key, text in shown.items())
    options = " ".join(f"--{key} {text}" for key, text in shown.items())
    return f"python -m pipeline.studies.judge {shlex.quote(path)} {options}"


def _is_idc(protocol: EvaluationParams) -> bool:
    """Return whether a protocol is IDC's with all its defaults."""
    shared = set(PROTOCOL_INDEPENDENT)
    return protocol.model_dump(exclude=shared) == EvaluationParams().model_dump(exclude=shared)


def _fits(network: str, info: DatasetInfo) -> bool:
    """Return whether a network can be built for the data set's images."""
    try:
        build(network, info, torch.Generator())
    except ValueError:
        return False
    return True


def _open_with_data(path: str, dataset: str, options: dict[str, Any]) -> Judgement:
    """Return the judgement; fetch the data if missing."""
    judgement = Judgement.open(path, dataset, **options)
    p = judgement.project.params
    datasets.create(p.dataset, p.data.options).fetch(judgement.project.root / p.data.directory)
    return judgement


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, after one line on standard error if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.studies.judge", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("set", help="the set's file")
    parser.add_argument("--data", required=True, help="the data set that it was distilled from, such as cifar10")
    parser.add_argument(
        "--protocol",
        default="",
        help="the protocol under which it is published; default: that of the file's layout or study, else idc",
    )
    parser.add_argument("--ipc", type=int, default=0, help="required number of stored images per class")
    parser.add_argument(
        "--stored", default="", help="what another project's file does not specify: 'normalised=literature'"
    )
    parser.add_argument("--networks", type=int, default=MIN_NETWORKS, help="number of networks trained on each set")
    parser.add_argument("--epochs", type=int, default=0, help="for a trial; default: the protocol's")
    args, root = parser.parse_args(arguments), find_root()
    path = os.path.relpath(args.set, root) if Path(args.set).exists() else args.set
    options = {key: value for key, value in vars(args).items() if key not in ("set", "data")}
    opened: list[Judgement] = []
    if status := exit_status(lambda: opened.append(_open_with_data(path, args.data, options))):
        return status
    judgement = opened[0]
    report = root / "reports" / "judged" / f"{judgement.name}.ipynb"
    listed = [f"{key}={value}" for key, value in {"path": path, "dataset": args.data, **options}.items()]
    if status := launch_notebook.main([str(root / NOTEBOOK), str(report), *listed]):
        return status
    folder = root / FOLDER / judgement.name
    print(answer(pd.read_csv(folder / "accuracies.csv"), read_json(folder / "judgement.json")).replace("**", ""))
    print(f"report: {report.relative_to(root)}; numbers: {folder.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
