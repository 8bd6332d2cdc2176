"""The evaluation stage: from sets to accuracies."""

import time
from typing import Any

import pandas as pd

from dreamlib.evaluate import Evaluation, curve, evaluate, test_split
from dreamlib.files import write_atomically, write_json
from dreamlib.params import EvaluationParams
from dreamlib.project import Project, Setting
from dreamlib.stage_distillation import read_set, read_snapshots


def run_evaluation(project: Project, setting: Setting) -> tuple[Evaluation, pd.DataFrame]:
    """Evaluate one set on the test images, and its snapshots on the validation images.

    Writes results/evaluation/<name>.json (metrics) and results/curves/<name>.csv (iteration, accuracy, std).
    """
    project.require(setting.method, setting.ipc, setting.seed)
    how, began = project.params.evaluation(setting.ipc), time.perf_counter()
    synthetic = read_set(project, setting)
    common: dict[str, Any] = {"how": how, "network": project.network, "compute": project.compute, "seed": setting.seed}
    test = test_split(project.params.dataset, project.params.data, project.root)
    done = evaluate(synthetic, test, project.info, **common, split="test", label=setting.name)
    evaluated = time.perf_counter() - began
    rows = _curve_rows(project, setting, synthetic, how, common)
    write_json(
        project.root / "results" / "evaluation" / f"{setting.name}.json", _metrics(setting, done, how, synthetic)
    )
    path = project.root / "results" / "curves" / f"{setting.name}.csv"
    write_atomically(path, rows.to_csv(index=False).encode())
    seconds = {"evaluation": evaluated, "curve": time.perf_counter() - began - evaluated}
    project.note(f"evaluation-{setting.name}", seconds)
    return done, rows


def _curve_rows(
    project: Project, setting: Setting, synthetic: Any, how: EvaluationParams, common: dict[str, Any]
) -> pd.DataFrame:
    columns = ["iteration", "accuracy", "std", "networks"]
    snapshots = read_snapshots(project, setting)
    if how.curve_networks == 0 or len(snapshots) < 2 or project.params.data.validation_per_class == 0:
        return pd.DataFrame(columns=columns)
    validation = project.split("validation")
    points = curve(synthetic, snapshots, validation, project.info, **common)
    rows = [(iteration, e.mean, e.std, len(e.accuracies)) for iteration, e in points]
    return pd.DataFrame(rows, columns=columns)


def _metrics(setting: Setting, done: Evaluation, how: EvaluationParams, synthetic: Any) -> dict[str, Any]:
    return {
        "accuracy": done.mean,
        "std": done.std,
        "accuracies": list(done.accuracies),
        "networks": len(done.accuracies),
        "epochs": done.epochs,
        "protocol": how.protocol,
        "split": done.split,
        "method": setting.method,
        "ipc": setting.ipc,
        "seed": setting.seed,
        "factor": synthetic.factor,
        "label_kind": "hard" if synthetic.soft_labels is None else "soft",
        "stored_floats": synthetic.stored_floats,
    }
