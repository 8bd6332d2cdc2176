"""The methods study read back: one row a method, the views, the plug-in pairs, the cross-architecture table."""

from typing import Any

import pandas as pd

from dreamlib._engine.files import read_json
from pipeline.project import Project
from pipeline.report.record import cost_table
from pipeline.report.tables import percent
from pipeline.stages.figures import evaluations, summary

SUFFIX = "_dream"  # an entry with DREAM's two ingredients is named after the one without


def views(project: Project) -> pd.DataFrame:
    """One row per evaluated (method, seed, network, view): accuracies of the networks trained under that view."""
    rows = []
    for setting in project.settings:
        found = read_json(project.file("evaluation", setting, ".json"))
        fixed = {"method": setting.method, "ipc": setting.ipc, "seed": setting.seed, "label_kind": found["label_kind"]}
        for view in found["views"]:
            of_view = fixed | {"network": view["network"], "view": view["view"]}
            rows += [of_view | {"accuracy": a} for a in view["accuracies"]]
    return pd.DataFrame(rows)


def seconds_of_distillation(record: dict[str, Any]) -> dict[str, float]:
    """Setting's name → seconds its distillation took where the study was made; empty without a record."""
    table = cost_table(record)
    prefix = "distillation-"
    return {r.stage.removeprefix(prefix): r.seconds for r in table.itertuples() if r.stage.startswith(prefix)}


def method_table(project: Project, record: dict[str, Any]) -> pd.DataFrame:
    """Every method with what its number rests on, soft labels last, best first within their track."""
    table = summary(evaluations(project))
    took = seconds_of_distillation(record)
    table["seconds"] = [_mean([v for k, v in took.items() if k.rsplit("-", 2)[0] == m]) for m in table.method]
    table = table.sort_values(["label_kind", "accuracy"], ascending=[True, False])
    shown = pd.DataFrame({"method": table.method, "test accuracy (%)": map(percent, table.accuracy, table["std"])})
    shown["labels"], shown["stored floats"] = table.label_kind.values, table.stored_floats.values
    shown["factor"], shown["iterations"] = table.factor.values, table.iterations.values
    shown["distillation (s)"] = table.seconds.round(1).values
    shown["seeds"], shown["networks a seed"] = table.seeds.values, (table.networks // table.seeds).values
    shown["protocol"] = [f"{p}, {e} epochs" for p, e in zip(table.protocol, table.epochs, strict=True)]
    return shown.set_index("method")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def spread(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean and sample standard deviation of ``accuracy`` per group; 0 for a group of one.

    >>> spread(pd.DataFrame({"m": ["a", "a"], "accuracy": [0.5, 0.7]}), ["m"]).round(3).values.tolist()
    [[0.6, 0.141]]
    """
    found = rows.groupby(keys, sort=False)["accuracy"].agg(["mean", "std"])
    return found.fillna({"std": 0.0}).rename(columns={"mean": "accuracy"})


def view_table(project: Project, against: str = "random") -> pd.DataFrame:
    """Accuracy under each view on the matched network, and its lead over ``against`` in the same view, in points."""
    rows = views(project)
    rows = rows[rows.network == rows.network.iloc[0]]
    table = spread(rows, ["method", "view"])
    shown = {}
    for method in dict.fromkeys(rows.method):
        line = {}
        for view in dict.fromkeys(rows.view):
            mean, std = table.loc[(method, view)]
            line[f"{view} (%)"] = percent(mean, std)
            line[f"{view}: lead over {against}"] = round(100 * (mean - table.loc[(against, view), "accuracy"]), 1)
        shown[method] = line
    return pd.DataFrame(shown).T.rename_axis("method")


def transfer_table(project: Project) -> pd.DataFrame:
    """Accuracy (%) of the first seed's set on every network listed, under the protocol; (method, network)."""
    rows = views(project)
    rows = rows[(rows.view == "protocol") & (rows.seed == project.params.seeds[0])]
    table = spread(rows, ["method", "network"])["accuracy"].unstack()
    order = list(dict.fromkeys(rows.network))
    return (100 * table[order]).round(1).reindex(list(dict.fromkeys(rows.method))).rename_axis(columns=None)


def plug_in_pairs(project: Project) -> list[tuple[str, str]]:
    """The methods that are there without and with DREAM's two ingredients."""
    pairs = [(m.removesuffix(SUFFIX), m) for m in project.params.methods if m.endswith(SUFFIX)]
    return pairs + ([("idc", "dream")] if {"idc", "dream"} <= set(project.params.methods) else [])


def plug_in_table(project: Project) -> pd.DataFrame:
    """Each method without and with DREAM's clustering start and representative batches, and what they add per seed."""
    means = evaluations(project).groupby(["method", "seed"])["accuracy"].mean()
    rows = []
    for without, with_dream in plug_in_pairs(project):
        gain = means[with_dream] - means[without]
        rows.append(
            {
                "method": without,
                "without": percent(means[without].mean(), means[without].std()),
                "with": percent(means[with_dream].mean(), means[with_dream].std()),
                "gain in points (paired by seed)": f"{100 * gain.mean():+.1f} ± {100 * gain.std():.1f}",
                "seeds with a gain": f"{int((gain > 0).sum())} of {len(gain)}",
            }
        )
    return pd.DataFrame(rows).set_index("method")


def not_above(table: pd.DataFrame, floor: str) -> list[str]:
    """Distilling methods of a ``summary`` whose mean accuracy is not above that of the real images ``floor`` picks."""
    least = table.loc[table.method == floor, "accuracy"].item()
    return table.method[(table.iterations > 0) & ~(table.accuracy > least)].tolist()


def _told(below: list[str], what: str) -> str:
    if not below:
        return f"Every distilling method is above {what}."
    return f"Not above {what}: {', '.join(f'`{m}`' for m in below)}."


def verdict(project: Project) -> str:
    """The study in a few sentences of Markdown, read from its results."""
    table = summary(evaluations(project))
    distilled = table[(table.iterations > 0) & (table.label_kind == "hard")].sort_values("accuracy", ascending=False)
    floor = table[table.method == "random"].iloc[0]
    first = distilled.iloc[0]
    following = "".join(
        f", then `{r.method}` with {percent(r.accuracy, r['std'])} %" for _, r in distilled.iloc[1:2].iterrows()
    )
    said = _told(not_above(table, "random"), "them")
    if "kmeans" in set(table.method):
        chosen = table[table.method == "kmeans"].iloc[0]
        said += f" Images chosen by k-means reach {percent(chosen.accuracy, chosen['std'])} % undistilled. "
        said += _told(not_above(table, "kmeans"), "those")
    gains = plug_in_table(project)["gain in points (paired by seed)"]
    listed = ", ".join(f"{name} {value}" for name, value in gains.items())
    return (
        f"Among methods with hard labels and {int(floor.stored_floats):,} stored floats, `{first.method}` is best "
        f"here: **{percent(first.accuracy, first['std'])} %**{following}; random real images reach "
        f"{percent(floor.accuracy, floor['std'])} %. {said} Plugging DREAM's two ingredients in changes accuracy by "
        f"(points, paired by seed): {listed}."
    )
