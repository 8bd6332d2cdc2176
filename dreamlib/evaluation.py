"""The accuracy of a distilled set: train new networks and test them. The only module that evaluates on test images."""

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib import data as datasets
from dreamlib._engine import ranks
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import read_json, write_json
from dreamlib._engine.progress import progress
from dreamlib._engine.seeding import derive, generator
from dreamlib._engine.threads import shares, side_by_side
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching.unrolled import UNROLLED, replay
from dreamlib.networks import build
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.checks import check_units, check_values
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import accuracy, fit_last_layer, predict
from dreamlib.training.schedules import SCHEDULES
from dreamlib.training.trainer import TrainSettings, compiled_network, fit

_log = logging.getLogger("dreamlib")


class PartialResults:
    """Accuracies of the networks trained so far, so that an interrupted evaluation can resume.

    path: JSON file of the results, read if it exists and rewritten by ``add``; None keeps them in memory. A damaged
        file is not used, with a warning.

    >>> partial = PartialResults()
    >>> partial.add(0, [0.8])
    >>> 0 in partial, 1 in partial, partial[0]
    (True, False, [0.8])
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._accuracies: dict[str, list[float]] = {}
        try:
            self._accuracies = read_json(path) if path and path.is_file() else {}
        except ValueError:
            _log.warning("results %s are damaged and are not used: training all networks again", path)

    def __contains__(self, index: int) -> bool:
        return str(index) in self._accuracies

    def __getitem__(self, index: int) -> list[float]:
        return self._accuracies[str(index)]

    def add(self, index: int, accuracies: list[float]) -> None:
        """Store a network's accuracies: as trained and, if the protocol refits the last layer, after the refit."""
        self._accuracies[str(index)] = accuracies
        if self.path:
            write_json(self.path, self._accuracies)

    def delete(self) -> None:
        """Remove the file, once the results are stored elsewhere."""
        if self.path:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies after the last epoch, as fractions, one per network.

    accuracies: after the refit of the last layer, if the protocol has one.
    split: name of the split that the accuracies were measured on.
    epochs: training epochs of each network.
    as_trained: accuracies before the refit; empty if there is none.
    """

    accuracies: tuple[float, ...]
    split: str
    epochs: int
    as_trained: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over networks; 0 for one network."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def test_split(name: str, data_dir: str | Path, options: Mapping[str, Any]) -> LabeledImages:
    """Return the test images of a data set, for evaluation only.

    name, options: see ``dreamlib.data.create``.
    data_dir: the folder of all data sets.
    """
    return datasets.load_split(name, "test", data_dir, 0, 0, options)


def train_settings(info: DatasetInfo, protocol: EvaluationParams, synthetic: SyntheticSet) -> TrainSettings:
    """Return the protocol as training settings; with ``learned_lr``, at the step size learned with the set (MTT)."""
    learned = protocol.learned_lr and "step_size" in synthetic.extras
    return TrainSettings(
        batch=protocol.batch,
        lr=float(synthetic.extras["step_size"]) if learned else protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        augmentation=augmentation_for(info, protocol.augmentation, protocol.augmentation_mode),
        cutmix=protocol.cutmix,
    )


def apply_view(view: str, synthetic: SyntheticSet, protocol: EvaluationParams) -> tuple[SyntheticSet, EvaluationParams]:
    """Return the set and the protocol of a view, which separates what the set contributes from what the protocol adds.

    view: 'protocol' changes nothing. 'plain' trains without augmentation and CutMix, except for a replay, which trains
        as the set was distilled. 'hard_labels' replaces stored soft labels by class numbers. 'idc' evaluates under
        IDC's protocol with its default settings.

    Compare a view with the same view of random real images, as DD-Ranking's label- and augmentation-robust scores do.
    """
    if view == "plain":
        return synthetic, protocol.model_copy(update={"augmentation": "none", "cutmix": 0.0})
    if view == "hard_labels":
        return replace(synthetic, soft_labels=None), protocol
    if view == "idc":
        execution = {"repeats": protocol.repeats, "parallel_networks": protocol.parallel_networks}
        return synthetic, EvaluationParams(protocol="idc", **execution)
    return synthetic, protocol


def evaluate(
    synthetic: SyntheticSet,
    images: LabeledImages,
    info: DatasetInfo,
    protocol: EvaluationParams,
    network: tuple[str, dict[str, Any]],
    compute: Compute,
    *,
    seed: int,
    split: str,
    repeats: int | None = None,
    epochs: int | None = None,
    label: str = "evaluate",
    partial: PartialResults | None = None,
) -> Evaluation:
    """Train new networks on the decoded set and return their accuracies on ``images`` after the last epoch.

    synthetic: the set. Its soft labels are used if it has some. A set with the rule 'bound' and without soft labels is
        decoded by the rule 'single', as in IDC's released code.
    images: (N, C, H, W) real images with labels. Nothing is selected on them: they are used once, after training.
    info: the data set's description.
    protocol: how networks are trained. On a CPU, up to ``parallel_networks`` of them train side by side.
    network: name and options of the architecture.
    compute: device and number format.
    seed: with the index of a network, the only source of its random numbers, so that all sets are evaluated with the
        same initial networks.
    split: name of the split that ``images`` are from.
    repeats, epochs: number of networks and of training epochs; by default the protocol's.
    label: title of the progress bar.
    partial: results of an interrupted run, whose networks are not trained again.

    With several workers (``dreamlib._engine.ranks``), each trains its share of networks and all return all accuracies.

    Raise ValueError, before any training, for a set with invalid values, and for real images that, according to
    ``info``, are in other units than the set's: see ``dreamlib.synthetic.checks.check_units``.
    """
    repeats = protocol.repeats if repeats is None else repeats
    epochs = protocol.epochs if epochs is None else epochs
    if repeats < 1 or epochs < 1:
        raise ValueError(f"repeats = {repeats}, epochs = {epochs}: give at least 1 of each, or None for the protocol's")
    check_values(synthetic)
    check_units(synthetic, info)
    placed = synthetic.to(compute.device)
    if placed.rule == "bound" and placed.soft_labels is None:
        placed = replace(placed, rule="single")
    train_images, class_numbers = placed.decode()
    labels = class_numbers if placed.soft_labels is None else placed.soft_labels
    images, settings = images.to(compute.device), train_settings(info, protocol, synthetic)
    name, options = network
    kernels, partial = compiled_network(network, info, compute), partial or PartialResults()
    indices = ranks.my_share(range(repeats))

    def train(job: tuple[nn.Module, int, CompiledNetwork], on_epoch: Callable[[], object]) -> None:
        model, model_seed, model_kernels = job
        if protocol.replay:
            replay(model, placed, info, compute, generator(model_seed, "replay"))
            for _ in range(epochs):
                on_epoch()
            return
        fit(
            model, train_images, labels, info, settings, model_kernels, epochs=epochs, seed=model_seed,
            schedule=SCHEDULES[protocol.decay], clean_share=protocol.clean_share, on_epoch=on_epoch,
        )  # fmt: skip

    threads = torch.get_num_threads() if compute.device.type == "cpu" else 1
    if protocol.replay:
        epochs = placed.info.get(UNROLLED, {}).get("passes", 1)
    with progress(len(indices) * epochs, label, unit="epoch") as bar:
        if compute.compile:
            bar.set_postfix_str("the first epoch may compile, which takes longer")
        trained = 0
        for size, network_threads in shares(len(indices), threads, protocol.parallel_networks):
            group = indices[trained : trained + size]
            trained += size
            if all(index in partial for index in group):
                bar.update(len(group) * epochs)
                continue
            seeds = [derive(seed, "evaluation", index) for index in group]
            models = [compute.place(build(name, info, generator(s, "network"), options)) for s in seeds]
            group_kernels = [kernels if len(group) == 1 else kernels.thread_local() for _ in models]
            jobs = list(zip(models, seeds, group_kernels, strict=True))
            side_by_side(train, jobs, network_threads, on_step=bar.update)
            for index, model in zip(group, models, strict=True):
                accuracies = [accuracy(predict(model, images.images, info, kernels), images.labels)]
                if protocol.last_layer == "ridge":
                    fit_last_layer(model, train_images, labels, info, kernels, protocol.last_layer_penalty)
                    accuracies.append(accuracy(predict(model, images.images, info, kernels), images.labels))
                partial.add(index, accuracies)
                bar.set_postfix(accuracy=f"{accuracies[-1]:.4f}")
    results = [partial[index] for index in indices]
    final = ranks.gather([accuracies[-1] for accuracies in results])
    as_trained = ranks.gather([accuracies[0] for accuracies in results if len(accuracies) > 1])
    return Evaluation(tuple(final), split, epochs, tuple(as_trained))


def curve(
    synthetic: SyntheticSet,
    snapshots: dict[int, Tensor],
    validation: LabeledImages,
    info: DatasetInfo,
    protocol: EvaluationParams,
    network: tuple[str, dict[str, Any]],
    compute: Compute,
    *,
    seed: int,
) -> Iterator[tuple[int, Evaluation]]:
    """Yield (iteration, accuracies on the validation split) for each snapshot, under the short protocol ``curve_*``.

    snapshots: iteration → canvases (K·ipc, C, H, W). Soft labels and learned scalars are those of the final set.

    The other arguments are those of ``evaluate``.
    """
    for iteration, canvases in sorted(snapshots.items()):
        snapshot = replace(synthetic, canvases=canvases)
        yield iteration, evaluate(
            snapshot, validation, info, protocol, network, compute, seed=seed, split="validation",
            repeats=protocol.curve_networks, epochs=protocol.curve_epochs, label=f"curve at {iteration}",
        )  # fmt: skip
