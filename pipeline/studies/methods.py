"""The tables of the methods study, read from its results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.project import Project
from pipeline.report.results import final_results, read_results
from pipeline.report.statistics import by_seed, spread
from pipeline.report.tables import percent, with_spread
from pipeline.stages.figures import summary

SUFFIX = "_dream"  # appended to a method's name for its entry with DREAM's two ingredients


def views(project: Project) -> pd.DataFrame:
    """Return the study's evaluations, one row per trained network and view (see ``results.read_results``)."""
    rows = read_results(project)
    return rows[rows.split == "test"]


def method_table(project: Project, record: Mapping[str, Any]) -> pd.DataFrame:
    """Return every method with the settings behind its accuracy: hard labels, then soft ones, each best first."""
    rows = final_results(read_results(project, record))
    table = summary(rows).sort_values(["label_kind", "accuracy"], ascending=[True, False])
    seconds = rows.assign(seconds=rows.seconds.round()).groupby("method")["seconds"].mean()
    shown = pd.DataFrame({"method": table.method, "test accuracy (%)": map(percent, table.accuracy, table["std"])})
    shown["labels"], shown["stored floats"] = table.label_kind, table.stored_floats
    shown["factor"], shown["iterations"] = table.factor, table.iterations
    shown["distillation (s)"] = table.method.map(seconds).round(1)
    shown["seeds"], shown["networks per seed"] = table.seeds, table.networks // table.seeds
    shown["protocol"] = [f"{p}, {e} epochs" for p, e in zip(table.protocol, table.epochs, strict=True)]
    return shown.set_index("method")


def view_table(project: Project) -> pd.DataFrame:
    """Return accuracy under each view on the matched network, and its lead over ``random`` in that view, in points."""
    rows = views(project)
    rows = rows[rows.matched]
    table, shown = spread(rows, ["method", "view"]), {}
    for method in rows.method.unique():
        shown[method] = {}
        for view in rows.view.unique():
            mean, std = table.loc[(method, view)]
            lead = 100 * (mean - table.loc[("random", view), "accuracy"])
            shown[method] |= {f"{view} (%)": percent(mean, std), f"{view}: lead over random": round(lead, 1)}
    return pd.DataFrame(shown).T.rename_axis("method")


def transfer_table(project: Project) -> pd.DataFrame:
    """Return accuracy (%) of the first seed's set on every network, methods (rows) × networks, under the protocol."""
    rows = views(project)
    rows = rows[(rows.view == "protocol") & (rows.seed == project.params.seeds[0])]
    table = spread(rows, ["method", "network"])["accuracy"].unstack()[rows.network.unique()]
    return (100 * table).round(1).reindex(rows.method.unique()).rename_axis(columns=None)


def plug_in_pairs(project: Project) -> list[tuple[str, str]]:
    """Return (without, with) pairs of methods: without and with DREAM's two ingredients."""
    pairs = [(method.removesuffix(SUFFIX), method) for method in project.params.methods if method.endswith(SUFFIX)]
    return pairs + ([("idc", "dream")] if {"idc", "dream"} <= set(project.params.methods) else [])


def plug_in_table(project: Project) -> pd.DataFrame:
    """Return each method without and with DREAM's initialisation and representative batches, and the paired gain."""
    accuracies, rows = by_seed(read_results(project), project.params.ipc[0]), []
    for without, with_dream in plug_in_pairs(project):
        gain = accuracies[with_dream] - accuracies[without]
        rows.append(
            {
                "method": without,
                "without": percent(accuracies[without].mean(), accuracies[without].std()),
                "with": percent(accuracies[with_dream].mean(), accuracies[with_dream].std()),
                "gain in points (paired by seed)": with_spread(100 * gain.mean(), 100 * gain.std(), 1, sign="+"),
                "seeds with a gain": f"{int((gain > 0).sum())} of {len(gain)}",
            }
        )
    return pd.DataFrame(rows).set_index("method")


def methods_not_above(table: pd.DataFrame, baseline: str) -> list[str]:
    """Return the distilling methods of a ``summary`` that are not above ``baseline``, which selects real images."""
    least = table.loc[table.method == baseline, "accuracy"].item()
    return table.method[(table.iterations > 0) & ~(table.accuracy > least)].tolist()


def _compared(table: pd.DataFrame, baseline: str, name: str) -> str:
    below = methods_not_above(table, baseline)
    if not below:
        return f"Every distilling method is above {name}."
    return f"Not above {name}: {', '.join(f'`{method}`' for method in below)}."


def verdict(project: Project) -> str:
    """Return the study in a few sentences of Markdown."""
    table = summary(final_results(read_results(project)))
    table["shown"] = [percent(row.accuracy, row.std, " %") for row in table.itertuples()]
    hard = table[(table.iterations > 0) & (table.label_kind == "hard")].sort_values("accuracy", ascending=False)
    best, *second = hard.head(2).itertuples()
    random = table[table.method == "random"].iloc[0]
    following = "".join(f", then `{row.method}` with {row.shown}" for row in second)
    baselines = _compared(table, "random", "them")
    if "kmeans" in set(table.method):
        chosen = table.loc[table.method == "kmeans", "shown"].item()
        baselines += f" Images chosen by k-means reach {chosen} undistilled. {_compared(table, 'kmeans', 'those')}"
    gains = plug_in_table(project)["gain in points (paired by seed)"]
    listed = ", ".join(f"{name} {value}" for name, value in gains.items())
    return (
        f"Among methods with hard labels and {random.stored_floats:,} stored floats, `{best.method}` is best here: "
        f"**{best.shown}**{following}; random real images reach {random.shown}. {baselines} Adding DREAM's two "
        f"ingredients changes accuracy by (points, paired by seed): {listed}."
    )
