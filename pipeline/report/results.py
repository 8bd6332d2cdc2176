"""Read the committed results: one long table of accuracies behind every table, figure and sentence of the reports."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib._engine.files import read_json
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.synthetic_set import BEST_FOLDER
from pipeline.params import find_root, read_params
from pipeline.project import Project, Setting

CLAIMS_FOLDER = Path("results") / "claims"
CLAIM_STUDIES = ("claims_curves", "claims_ablation", "claims_factor", "claims_training", "levers", "methods")
MEASURED_STUDY = "claims_curves"  # study that provides data, network and seeds for other measurements of the claims


def read_results(project: Project, record: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return the results of every setting of a project as one long table.

    A row is one network trained on one set under one view (``split`` is "test"), or one point of an accuracy curve
    (``split`` is "validation"). Columns:

    - study, method, ipc, seed: the setting; ``study`` is empty for the default pipeline
    - network, matched: the evaluation network, and whether its accuracy is the one reported for the set
    - view, protocol, epochs: how the network was trained
    - iteration: inner iterations of distillation
    - accuracy: fraction
    - seconds: seconds of distillation until ``iteration`` if ``record`` has them, else missing
    - factor, label_kind, stored_floats, training_images: the set

    Leftover files of settings that the parameters do not list are ignored. Raise FileNotFoundError for a missing file.
    """
    rows = [row for setting in project.settings for row in _setting_rows(project, setting, record or {})]
    return pd.DataFrame(rows)


def _setting_rows(project: Project, setting: Setting, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    evaluation = read_json(project.file("evaluation", setting, ".json"))
    distillation = read_json(project.file("distillation", setting, ".json"))
    name = f"distillation-{setting.name}"
    timings = record.get(f"{project.study}/{name}") or record.get(name) or {}
    matched = evaluation["views"][0]["network"]
    shared = {"study": project.study or "", "method": setting.method, "ipc": setting.ipc, "seed": setting.seed}
    shared |= {key: evaluation[key] for key in ("factor", "label_kind", "stored_floats")}
    shared |= {"training_images": distillation["training_images"]}
    final = {
        "split": "test",
        "iteration": distillation["iterations"],
        "seconds": sum(timings["seconds"].values()) if timings else math.nan,
    }
    for view in evaluation["views"]:
        trained = {"network": view["network"], "matched": view["network"] == matched, "view": view["view"]}
        trained |= {key: view.get(key, evaluation[key]) for key in ("protocol", "epochs")}
        for accuracy in view["accuracies"]:
            yield shared | trained | final | {"accuracy": accuracy}
    until = timings.get("snapshots_s", {})
    curve_epochs = project.params.evaluation(setting.method, setting.ipc).curve_epochs
    trained = {"network": matched, "matched": True, "view": "protocol"}
    trained |= {"protocol": evaluation["protocol"], "epochs": curve_epochs, "split": "validation"}
    for point in pd.read_csv(project.file("curves", setting, ".csv")).itertuples():
        seconds = until.get(str(point.iteration), math.nan)
        yield shared | trained | {"iteration": point.iteration, "seconds": seconds, "accuracy": point.accuracy}


def final_results(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows reported for the sets: test accuracy of the matched network under the protocol."""
    return rows[(rows.split == "test") & rows.matched & (rows.view == "protocol")]


def best_results(root: Path, dataset: str) -> pd.DataFrame:
    """Return results/best/<dataset>-ipc<ipc>.json as rows of the long table, in order of ipc.

    The view is "protocol", the set's own evaluation, or "idc", IDC's protocol with its defaults. ``seed`` numbers the
    sets. Two more columns describe a best set: ``decode`` and ``augmentation_mode``.
    """
    columns = ["study", "method", "ipc", "seed", "view", "protocol", "epochs", "accuracy", "iteration", "factor"]
    columns += ["label_kind", "stored_floats", "decode", "augmentation_mode"]
    rows = []
    for path in (root / BEST_FOLDER).glob(f"{dataset}-ipc*.json"):
        best = read_json(path)
        shared = best | {"study": "best", "ipc": int(path.stem.rpartition("-ipc")[2]), "iteration": best["iterations"]}
        by_idc = best["idc"] | {"protocol": "idc", "epochs": EvaluationParams().epochs}
        views = {"protocol": best, "idc": by_idc}
        for view, result in views.items():
            trained = {"view": view, "protocol": result["protocol"], "epochs": result["epochs"]}
            for index, accuracy in enumerate(result["accuracies"]):
                rows.append(shared | trained | {"seed": index // result["networks"], "accuracy": accuracy})
    return pd.DataFrame(rows, columns=columns).sort_values("ipc", kind="stable", ignore_index=True)


def published_results(root: Path, dataset: str) -> pd.DataFrame:
    """Return the published accuracies of a data set: method, ipc, accuracy and std (fractions), factor, source.

    ``verified`` tells whether the number was checked against its source, not taken from another paper.
    """
    published = pd.read_csv(root / "notebooks" / "published.csv", true_values=["yes"], false_values=["no"])
    fractions = {"accuracy": published.accuracy / 100, "std": published["std"] / 100}
    return published.assign(**fractions)[published.dataset == dataset]


def read_record(folder: Path) -> dict[str, Any]:
    """Return the committed timings of a study, ``folder``/record.json; empty if there are none."""
    path = folder / "record.json"
    return read_json(path) if path.is_file() else {}


@dataclass(frozen=True)
class Claims:
    """The committed results by which the claims are judged; ``record`` has the timings of their runs."""

    root: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path | None = None) -> "Claims":
        """Return the results of the project at ``root``, by default the one around the current directory."""
        root = root or find_root()
        return cls(root, read_record(root / CLAIMS_FOLDER))

    def project(self, study: str) -> Project:
        """Return a study with its parameters."""
        return Project(self.root, read_params(self.root, study), study)

    @property
    def methods(self) -> Project:
        """The methods study."""
        return self.project("methods")

    @cached_property
    def results(self) -> pd.DataFrame:
        """The results of all studies of the claims, as one long table (see ``read_results``)."""
        return pd.concat([read_results(self.project(study), self.record) for study in CLAIM_STUDIES], ignore_index=True)

    def of_study(self, study: str) -> pd.DataFrame:
        """Return the results of one study."""
        return self.results[self.results.study == study]

    def table(self, name: str) -> pd.DataFrame:
        """Return results/claims/<name>.csv; raise FileNotFoundError naming the command that makes it."""
        path = self.root / CLAIMS_FOLDER / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; make it with `make claims`")
        return pd.read_csv(path)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """results/claims/cost.csv with the seconds and joules of each training, missing if not recorded.

        A row is one network (``repeat``) after ``step`` training steps on one set, or on all images (``ipc`` 0).
        """
        costs, timings = self.table("cost"), self.record.get(f"{MEASURED_STUDY}/cost", {})
        keys = [f"{row.data}, step {row.step}, network {row.repeat}" for row in costs.itertuples()]
        columns = {"seconds": "training_s", "joules": "joules"}
        return costs.assign(**{c: [timings.get(k, {}).get(key, math.nan) for key in keys] for c, k in columns.items()})

    @cached_property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.project(MEASURED_STUDY).info.num_classes
