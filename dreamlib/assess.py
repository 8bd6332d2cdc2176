"""The evaluation and summary stages: from sets to accuracies, from accuracies to the tables of the report."""

import time
from typing import Any

import pandas as pd

from dreamlib.evaluate import Evaluation, curve, evaluate, test_split
from dreamlib.files import read_json, write_atomically, write_json
from dreamlib.params import EvaluationParams
from dreamlib.pipeline import Project, Setting, read_set, read_snapshots


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


def evaluations(project: Project) -> pd.DataFrame:
    """One row per evaluated network of every setting params.yaml lists: method, ipc, seed, network, accuracy, …"""
    rows = []
    for setting in settings(project):
        found = read_json(project.root / "results" / "evaluation" / f"{setting.name}.json")
        made = read_json(project.root / "results" / "distillation" / f"{setting.name}.json")
        fixed = {k: v for k, v in found.items() if k not in ("accuracy", "std", "accuracies", "networks")}
        fixed |= {"iterations": made["iterations"], "training_images": made["training_images"]}
        rows += [{**fixed, "network": i, "accuracy": a} for i, a in enumerate(found["accuracies"])]
    return pd.DataFrame(rows)


def settings(project: Project) -> list[Setting]:
    """All settings of the matrix, in params.yaml's order."""
    p = project.params
    return [Setting(m, i, s) for i in p.ipc for m in p.methods for s in p.seeds]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean ± sample standard deviation over all networks of all seeds, one row per (ipc, method).

    >>> rows = pd.DataFrame({"ipc": 1, "method": "a", "seed": 0, "factor": 1, "iterations": 0, "training_images": 10,
    ...     "stored_floats": 7840, "label_kind": "hard", "protocol": "idc", "epochs": 9, "accuracy": [0.5, 0.7]})
    >>> summary(rows)[["accuracy", "std", "networks"]].round(3).values.tolist()
    [[0.6, 0.141, 2.0]]
    """
    keys = ["ipc", "method"]
    grouped = rows.groupby(keys, sort=False)
    fixed = ["factor", "iterations", "training_images", "stored_floats", "label_kind", "protocol", "epochs"]
    table = grouped[fixed].first()
    table["accuracy"] = grouped["accuracy"].mean()
    table["std"] = grouped["accuracy"].std().fillna(0.0)
    table["networks"] = grouped["accuracy"].size()
    table["seeds"] = grouped["seed"].nunique()
    return table.reset_index()


def write_summary(project: Project) -> pd.DataFrame:
    """The table of all results: results/summary.json (metrics), results/summary.csv and results/summary.md."""
    table = summary(evaluations(project))
    results = project.root / "results"
    metrics = {
        f"ipc{row.ipc}": {
            r.method: {"accuracy": r.accuracy, "std": r.std} for r in table[table.ipc == row.ipc].itertuples()
        }
        for row in table.itertuples()
    }
    write_json(results / "summary.json", metrics)
    write_atomically(results / "summary.csv", table.to_csv(index=False).encode())
    write_atomically(results / "summary.md", markdown(table).encode())
    return table


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table in percent, as the README shows it."""
    head = "| ipc | method | test accuracy (%) | networks × seeds | factor | training images | stored floats | iterations |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in table.itertuples():
        score = f"{100 * r.accuracy:.1f} ± {100 * r.std:.1f}"
        counts = f"{r.networks // r.seeds} × {r.seeds}"
        lines.append(
            f"| {r.ipc} | {r.method} | {score} | {counts} | {r.factor} | {r.training_images} | {r.stored_floats:,} "
            f"| {r.iterations} |"
        )
    return "\n".join(lines) + "\n"
