"""The summary: from the evaluations of all settings to the tables of the report."""

import pandas as pd

from dreamlib._engine.files import read_json, write_atomically, write_json
from pipeline.project import Project
from pipeline.report.tables import markdown, percent


def evaluations(project: Project) -> pd.DataFrame:
    """One row per evaluated network of every setting params.yaml lists: method, ipc, seed, network, accuracy, …"""
    rows = []
    for setting in project.settings:
        found = read_json(project.file("evaluation", setting, ".json"))
        made = read_json(project.file("distillation", setting, ".json"))
        fixed = {k: v for k, v in found.items() if k not in ("accuracy", "std", "accuracies", "networks", "views")}
        fixed |= {"iterations": made["iterations"], "training_images": made["training_images"]}
        rows += [{**fixed, "network": i, "accuracy": a} for i, a in enumerate(found["accuracies"])]
    return pd.DataFrame(rows)


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
    results = project.results
    metrics = {
        f"ipc{row.ipc}": {
            r.method: {"accuracy": r.accuracy, "std": r.std} for r in table[table.ipc == row.ipc].itertuples()
        }
        for row in table.itertuples()
    }
    write_json(results / "summary.json", metrics)
    write_atomically(results / "summary.csv", table.to_csv(index=False).encode())
    write_atomically(results / "summary.md", summary_markdown(table).encode())
    return table


def summary_markdown(table: pd.DataFrame, kept: pd.DataFrame | None = None) -> str:
    """The summary as a Markdown table in percent, as the README shows it; rows of ``kept_best`` follow at the end."""
    columns = (
        "ipc", "method", "test accuracy (%)", "networks × seeds", "protocol", "labels", "factor", "training images",
        "stored floats", "iterations",
    )  # fmt: skip
    rows = [
        [
            r.ipc, r.method, percent(r.accuracy, r.std), f"{r.networks // r.seeds} × {r.seeds}",
            f"{r.protocol}, {r.epochs} epochs", r.label_kind, r.factor, r.training_images, f"{r.stored_floats:,}",
            f"{r.iterations:,}",
        ]
        for part in (table, kept)
        if part is not None
        for r in part.itertuples()
    ]  # fmt: skip
    return markdown(columns, rows)


def kept_best(project: Project) -> pd.DataFrame:
    """The project's best sets at the ipc in use, as committed in results/best: rows for ``summary_markdown``.

    Their accuracy is that by IDC's protocol, or by their own where they have not met IDC's. Empty where none is kept.
    """
    rows = []
    for ipc in project.params.ipc:
        path = project.root / "results" / "best" / f"{project.params.dataset}-ipc{ipc}.json"
        if not path.is_file():
            continue
        best = read_json(path)
        own = {"accuracy": best["accuracy"], "std": best["std"], "networks": best["networks"]}
        own |= {"seeds": len(best["seeds"]), "protocol": f"own ({best['protocol']})", "epochs": best["epochs"]}
        shown = best["idc"] | {"protocol": "idc", "epochs": 1000} if "idc" in best else own
        images = ipc * project.info.num_classes * best["factor"] ** 2
        fixed = {key: best[key] for key in ("factor", "stored_floats", "label_kind", "iterations")}
        fixed |= {"ipc": ipc, "method": f"kept best set ({best['method']})", "training_images": images}
        rows.append(shown | fixed | {"networks": shown["networks"] * shown["seeds"]})
    return pd.DataFrame(rows)


def curves(project: Project) -> pd.DataFrame:
    """Validation accuracy along the way of every distilled setting: ipc, method, iteration, accuracy, std over seeds.

    The standard deviation is over seeds × networks where there are several, else missing.
    """
    parts = []
    for setting in project.settings:
        path = project.file("curves", setting, ".csv")
        part = pd.read_csv(path)
        parts.append(part.assign(method=setting.method, ipc=setting.ipc, seed=setting.seed))
    every = pd.concat([part for part in parts if len(part)] or parts)
    grouped = every.groupby(["ipc", "method", "iteration"], sort=False)["accuracy"]
    return grouped.agg(["mean", "std"]).rename(columns={"mean": "accuracy"}).reset_index()


def headline(project: Project, table: pd.DataFrame) -> str:
    """The result in two sentences of Markdown, read from the table."""
    sentences = []
    for ipc, part in table.groupby("ipc", sort=False):
        ranked = part.sort_values("accuracy", ascending=False)
        listed = ", ".join(f"{r.method} {percent(r.accuracy, r.std)}" for r in ranked.itertuples())
        sentences.append(f"**ipc {ipc}:** {listed}")
    p = project.params
    return f"Test accuracy in percent on {p.dataset}, budget `{p.budget}`, best first. " + "; ".join(sentences) + "."


def published_table(project: Project, verified: bool = True) -> pd.DataFrame:
    """Published accuracies (%) for the data set and the ipc in use, from notebooks/published.csv; may be empty.

    ``verified``: those checked against their source; otherwise those known from other papers only.
    """
    path = project.root / "notebooks" / "published.csv"
    every = pd.read_csv(path, true_values=["yes"], false_values=["no"])
    here = (every.dataset == project.params.dataset) & every.ipc.isin(project.params.ipc)
    chosen = every[here & (every.verified == verified)]
    return chosen.pivot_table(index=["method", "source"], columns="ipc", values="accuracy", sort=False)
