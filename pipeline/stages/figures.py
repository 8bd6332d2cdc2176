"""The figures stage: from the evaluations of all settings to the tables of the report."""

import math

import pandas as pd

from dreamlib._engine.files import write_atomically, write_json
from pipeline.project import Project
from pipeline.report import statistics
from pipeline.report.results import best_results, final_results, published_results, read_results
from pipeline.report.tables import markdown, percent


def evaluations(project: Project) -> pd.DataFrame:
    """Return one row per network whose accuracy is reported for its set (see ``read_results``)."""
    return final_results(read_results(project))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean ± sample standard deviation over all networks of all seeds, one row per (ipc, method).

    ``std`` is missing for a single network.

    >>> rows = pd.DataFrame({"ipc": 1, "method": "a", "seed": 0, "factor": 1, "iteration": 0, "training_images": 10,
    ...     "stored_floats": 7840, "label_kind": "hard", "protocol": "idc", "epochs": 9, "accuracy": [0.5, 0.7]})
    >>> summary(rows)[["accuracy", "std", "networks"]].round(3).values.tolist()
    [[0.6, 0.141, 2.0]]
    """
    keys = ["ipc", "method"]
    grouped = rows.rename(columns={"iteration": "iterations"}).groupby(keys, sort=False)
    fixed = ["factor", "iterations", "training_images", "stored_floats", "label_kind", "protocol", "epochs"]
    table = grouped[fixed].first().join(statistics.spread(rows, keys))
    table["networks"] = grouped["accuracy"].size()
    table["seeds"] = grouped["seed"].nunique()
    return table.reset_index()


def write_summary(project: Project) -> pd.DataFrame:
    """Write the table of all results: results/summary.json (metrics), results/summary.csv and results/summary.md."""
    table = summary(evaluations(project))
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in table.itertuples():
        spread = {} if math.isnan(row.std) else {"std": row.std}
        metrics.setdefault(f"ipc{row.ipc}", {})[row.method] = {"accuracy": row.accuracy} | spread
    write_json(project.results / "summary.json", metrics)
    write_atomically(project.results / "summary.csv", table.to_csv(index=False).encode())
    write_atomically(project.results / "summary.md", summary_markdown(table).encode())
    return table


def summary_markdown(table: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    """Return the summary as a Markdown table in percent, followed by the rows of ``best_sets_summary``."""
    columns = (
        "ipc", "method", "test accuracy (%)", "networks × seeds", "protocol", "labels", "factor", "training images",
        "stored floats", "iterations",
    )  # fmt: skip
    parts = [table] if best is None else [table, best]
    rows = [
        [
            row.ipc, row.method, percent(row.accuracy, row.std), f"{row.networks // row.seeds} × {row.seeds}",
            f"{row.protocol}, {row.epochs} epochs", row.label_kind, row.factor, row.training_images,
            f"{row.stored_floats:,}", f"{row.iterations:,}",
        ]
        for part in parts
        for row in part.itertuples()
    ]  # fmt: skip
    return markdown(columns, rows)


def best_sets_summary(project: Project) -> pd.DataFrame:
    """Return the best sets at the ipc in use, with accuracies under IDC's protocol, for ``summary_markdown``."""
    rows = best_results(project.root, project.params.dataset)
    rows = rows[rows.ipc.isin(project.params.ipc) & (rows.view == "idc")]
    images = rows.ipc * project.info.num_classes * rows.factor**2
    return summary(rows.assign(training_images=images, method="best set (" + rows.method + ")"))


def curves(project: Project) -> pd.DataFrame:
    """Return validation accuracy by iteration of every distilled setting (see ``statistics.curves``)."""
    return statistics.curves(read_results(project))


def headline(project: Project, table: pd.DataFrame) -> str:
    """Return the result in two sentences of Markdown."""
    sentences = []
    for ipc, part in table.groupby("ipc", sort=False):
        ranked = part.sort_values("accuracy", ascending=False)
        listed = ", ".join(f"{row.method} {percent(row.accuracy, row.std)}" for row in ranked.itertuples())
        sentences.append(f"**ipc {ipc}:** {listed}")
    p = project.params
    return f"Test accuracy in percent on {p.dataset}, budget `{p.budget}`, best first. " + "; ".join(sentences) + "."


def spread_in_words(table: pd.DataFrame) -> str:
    """Return a description of the numbers and whiskers of a ``summary``."""
    single = table["std"].isna()
    if single.all():
        return "of one network each, which shows no spread"
    return "mean ± std over networks and seeds" + ("; one network has no whisker" if single.any() else "")


def published_table(project: Project, verified: bool = True) -> pd.DataFrame:
    """Return published accuracies (%) for the data set and the ipc in use; may be empty.

    verified: whether to return those checked against their source, or those known from other papers only.
    """
    published = published_results(project.root, project.params.dataset)
    rows = published[published.ipc.isin(project.params.ipc) & (published.verified == verified)]
    table = rows.pivot_table(index=["method", "source"], columns="ipc", values="accuracy", sort=False)
    return (100 * table).round(1)
