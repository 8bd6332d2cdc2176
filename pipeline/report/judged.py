"""Report of a judged set: two robust scores, tables and sentences, all from one long table of accuracies.

The table has one row per trained network: method, seed (of the experiment or draw), network, matched, view, protocol,
epochs, accuracy. The methods are ``THIS`` set, ``RANDOM`` real images, ``KMEANS`` medoids and, if there is one,
``BEST_SET``, the best set of the same storage. The summary is results/judged/<name>/judgement.json.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib._engine.files import read_json
from dreamlib.settings import EvaluationParams
from dreamlib.training.trainer import TrainSettings
from pipeline.project import Project
from pipeline.report.cells import origin
from pipeline.report.statistics import spread
from pipeline.report.tables import markdown, percent

THIS, RANDOM, KMEANS, BEST_SET = "this set", "random", "kmeans", "our best set"
MIN_NETWORKS = 5  # minimum number per architecture for a full judgement
ABSENT = "–"
# Test accuracy of the ConvNet-3 on all training images (Zhao et al., ICLR 2021), for hard label recovery.
WHOLE_DATA = {"fashion_mnist": 0.935, "cifar10": 0.848}


def normalised(value: float) -> float:
    """Return a weighted difference of accuracies, from -1 to 1, as a score from 0 to 1: (e^v − e^-1) / (e − e^-1).

    >>> normalised(-1.0), round(normalised(0.0), 4), normalised(1.0)
    (0.0, 0.2689, 1.0)
    """
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def mean_accuracy(rows: pd.DataFrame, method: str, view: str) -> float:
    """Return the mean accuracy of the matched network; nan if it was not measured."""
    return float(rows.accuracy[rows.matched & (rows.method == method) & (rows.view == view)].mean())


def scores(rows: pd.DataFrame, dataset: str) -> dict[str, float]:
    """Return DD-Ranking's scores (Li et al., arXiv 2505.13300), as fractions; nan if a required accuracy is missing.

    ior: the set's accuracy minus that of random real images, both under the set's own protocol.
    hlr: the accuracy on all real images minus the set's with hard labels; smaller is better.
    lrs, ars: label- and augmentation-robust score, ``normalised`` means of ior and −hlr, and of ior and the same lead
        without augmentation.

    dataset: its name, for the accuracy on all real images (``WHOLE_DATA``).
    """
    lead = {view: mean_accuracy(rows, THIS, view) - mean_accuracy(rows, RANDOM, view) for view in ("protocol", "plain")}
    recovery = WHOLE_DATA.get(dataset, math.nan) - mean_accuracy(rows, THIS, "hard_labels")
    return {
        "ior": lead["protocol"],
        "hlr": recovery,
        "lrs": normalised((lead["protocol"] - recovery) / 2),
        "ars": normalised((lead["protocol"] + lead["plain"]) / 2),
    }


def _labels(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return view → the name of its protocol in tables; the set's own is omitted if it is IDC's."""
    epochs, protocol = summary["epochs"], summary["protocol"]
    names = {"protocol": f"own ({protocol}), {epochs['protocol']} epochs", "idc": f"idc, {epochs['idc']} epochs"}
    return names if summary["own_is_not_idc"] else {"idc": names["idc"]}


def accuracies(rows: pd.DataFrame, summary: Mapping[str, Any], by: str = "method") -> pd.DataFrame:
    """Return accuracy and std of the matched network per ``by`` and protocol, as columns of a long table."""
    names = _labels(summary)
    chosen = rows[rows.matched & rows.view.isin(names)]
    table = spread(chosen, [by, "view"]).reset_index()
    return table.assign(protocol=table.view.map(names))


def _wide(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return a long table of means and stds as text, ``by`` (rows) × protocol."""
    shown = table.assign(shown=[percent(*pair) for pair in zip(table.accuracy, table["std"], strict=True)])
    wide = shown.pivot(index=by, columns="protocol", values="shown").reindex(shown[by].unique())
    return wide[list(dict.fromkeys(shown.protocol))].rename_axis(columns=None)


def accuracy_table(rows: pd.DataFrame, summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return test accuracy (%) of every set under each protocol, and what the set stores."""
    table = _wide(accuracies(rows, summary), "method")
    stored = pd.DataFrame(summary["sets"]).T.loc[table.index]
    table["networks × sets"] = [
        f"{summary['networks']} × {rows.seed[rows.method == method].nunique()}" for method in table.index
    ]
    table["labels"], table["factor"] = stored.labels, stored.factor
    for name in ("training_images", "stored_floats", "bytes"):
        table[name.replace("_", " ")] = stored[name].map("{:,}".format)
    return table.fillna(ABSENT)


def experiment_table(rows: pd.DataFrame, summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return test accuracy (%) of each experiment of the file, mean ± std over its networks."""
    return _wide(accuracies(rows[rows.method == THIS], summary, "seed"), "seed").rename_axis("experiment")


def view_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return test accuracy (%) with and without augmentation and with hard labels, compared with random real images."""
    meanings = {
        "protocol": "own protocol",
        "plain": "without augmentation and CutMix",
        "hard_labels": "hard labels",
    }
    table, shown = spread(rows[rows.matched], ["method", "view"]), {}
    for view, meaning in meanings.items():
        cells = {m: percent(*table.loc[(m, view)]) if (m, view) in table.index else ABSENT for m in (THIS, RANDOM)}
        lead = 100 * (mean_accuracy(rows, THIS, view) - mean_accuracy(rows, RANDOM, view))
        shown[meaning] = cells | {"lead (points)": ABSENT if math.isnan(lead) else f"{lead:+.1f}"}
    return pd.DataFrame(shown).T.rename_axis("view")


def network_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return test accuracy (%) under the set's own protocol, networks (rows) × the set and random real images."""
    rows = rows[(rows.view == "protocol") & rows.method.isin((THIS, RANDOM))]
    table = spread(rows, ["network", "method"])
    shown = table.assign(shown=[percent(*pair) for pair in table.values])["shown"].unstack()
    return shown.loc[rows.network.unique(), rows.method.unique()].fillna(ABSENT).rename_axis(columns=None)


def score_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the scores (%) with their formulas."""
    formulas = {
        "ior": ("improvement over random (IOR)", "own(set) − own(random)"),
        "hlr": ("hard label recovery (HLR)", "all real images − hard(set)"),
        "lrs": ("label-robust score (LRS)", "S((IOR − HLR) / 2)"),
        "ars": ("augmentation-robust score (ARS)", "S((IOR + plain(set) − plain(random)) / 2)"),
    }
    values = summary["scores"]
    shown = {name: ABSENT if values[key] is None else f"{100 * values[key]:.1f}" for key, (name, _) in formulas.items()}
    table = pd.DataFrame({"value (%)": shown, "formula": {name: text for name, text in formulas.values()}})
    return table.rename_axis("score")


def protocol_note(protocol: EvaluationParams, settings: TrainSettings) -> str:
    """Describe training under the set's own protocol in a sentence of Markdown."""
    if protocol.replay:
        return "The set's own protocol replays the training that the set was unrolled through."
    return (
        f"The set's own protocol is `{protocol.protocol}`: {protocol.epochs} epochs in batches of {settings.batch}, "
        f"learning rate {settings.lr:.4g}, augmentation `{protocol.augmentation}`, CutMix {settings.cutmix:g}."
    )


def makers_note(summary: Mapping[str, Any]) -> str:
    """Return the accuracy that the set's authors stored in the file, in a sentence; empty if they stored none."""
    listed = [
        f"{_stated(accuracy, ' %')} ({network}, {accuracy['networks']} network{'s' * (accuracy['networks'] > 1)})"
        for network, accuracy in summary["makers"].items()
    ]
    return f"The file itself states a test accuracy of {', '.join(listed)}." if listed else ""


def _stated(accuracy: Mapping[str, float], unit: str = "") -> str:
    return percent(accuracy["mean"], accuracy["std"] if accuracy["networks"] > 1 else math.nan, unit)


def best_set_note(summary: Mapping[str, Any]) -> str:
    """Return a sentence if there is no best set to compare with; else an empty string."""
    return "" if BEST_SET in summary["sets"] else "results/best has no other set of the same storage for this data set."


def trial(summary: Mapping[str, Any]) -> str:
    """Return a warning for a trial, with too few networks or epochs for a judgement; empty for a full one."""
    reasons = []
    if summary["epochs"] != summary["protocol_epochs"]:
        full = summary["protocol_epochs"]
        reasons.append(f"**not the protocols' epochs** ({full['protocol']} under its own, {full['idc']} under IDC's)")
    if (networks := summary["networks"]) < MIN_NETWORKS:
        reasons.append(f"{networks} network{'s' * (networks > 1)} in place of {MIN_NETWORKS} or more")
    return f"**A trial**: {' and '.join(reasons)}. " if reasons else ""


def answer(rows: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """Return the accuracy of the set in a sentence of Markdown per protocol, after a warning for a trial."""
    epochs, networks, experiments = summary["epochs"], summary["networks"], summary["experiments"]
    names = {
        "protocol": f"its own protocol ({summary['protocol']}, {epochs['protocol']} epochs)",
        "idc": f"IDC's protocol ({epochs['idc']} epochs)",
    }
    table, sentences = accuracies(rows, summary), []
    for view, part in table.groupby("view", sort=False):
        shown = {row.method: percent(row.accuracy, row.std, " %" * (row.method == THIS)) for row in part.itertuples()}
        others = ", ".join(f"{method} {text}" for method, text in shown.items() if method != THIS)
        result = f"{shown[THIS]}{' test accuracy on ' + summary['dataset'] if not sentences else ''}"
        subject = "It" if sentences else summary["name"]
        sentences.append(
            f"**{subject} reaches {result} under {names[view]}**{', compared with ' + others if others else ''}."
        )
    over = f"mean ± standard deviation over {networks} network{'s' * (networks > 1)}"
    over += f" on each of {experiments} experiments" if experiments > 1 else ""
    if networks * experiments == 1:
        over = "accuracies of one network, without a spread"
    stored = summary["sets"][THIS]
    return (
        f"{trial(summary)}{' '.join(sentences)} The set stores {stored['stored_floats']:,} floats ({stored['labels']} "
        f"labels), the baselines about as many; {over}, after the last epoch."
    )


def judged_sets(root: Path) -> str:
    """Return a table with a row per set of results/judged, and the accuracy that its authors stored in the file."""
    lines = []
    for path in sorted((root / "results" / "judged").glob("*/judgement.json")):
        summary, rows = read_json(path), pd.read_csv(path.with_name("accuracies.csv"))
        table = spread(rows[rows.matched], ["method", "view"])
        measured = [(THIS, "protocol"), (THIS, "idc"), (RANDOM, "protocol"), (KMEANS, "protocol")]
        cells = [percent(*table.loc[key]) if key in table.index else ABSENT for key in measured]
        stated = [_stated(accuracy) for accuracy in summary["makers"].values()]
        networks = f"{summary['networks']} × {summary['experiments']}"
        protocol = f"{summary['protocol']}, {summary['epochs']['protocol']} epochs"
        computed = f"{summary['compute']['device']}, {summary['compute']['precision']}"
        head = (summary["name"], summary["dataset"], protocol)
        lines.append((*head, *cells, ", ".join(stated) or ABSENT, networks, computed))
    columns = ("set, own (%)", "set, idc (%)", "random, own (%)", "k-means, own (%)")
    names = ("set", "data", "own protocol", *columns, "stated in the file (%)", "networks × sets", "on")
    return markdown(names, lines)


def provenance(project: Project, summary: Mapping[str, Any]) -> str:
    """Return the provenance of the numbers as a Markdown table: the file, data, device and versions."""
    source = summary["source"]
    foreign = f", file of layout {source['format']} with SHA-256 `{source['sha256'][:16]}`" if source else ""
    rows = {
        "made by": f"`{summary['command']}`",
        "set": f"{summary['file']}, hash of its content `{summary['content']}`{foreign}",
        **origin(project),
    }
    return markdown(("", ""), rows.items())
