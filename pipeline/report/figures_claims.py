"""Figures of the study of claims, each from a table."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from pipeline.report.figures import COLORS, color, finished, whiskers
from pipeline.report.labels import literal

_KINDS = {
    "random": COLORS["random"],
    "representative": COLORS["dream"],
    "center": "#009E73",
    "boundary": "#CC79A7",
}


def measures_by_step(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Draw a panel per measure with a line per kind of batch; bars are standard deviations over seeds.

    A panel whose values span more than a factor of 10 has a log scale.

    table: columns batch, point, measure, mean, std
    labels: measure → axis label
    """
    figure, axes = plt.subplots(1, len(labels), figsize=(3.3 * len(labels), 3.2), squeeze=False)
    for axis, (measure, label) in zip(axes.flat, labels.items(), strict=True):
        for kind, part in table[table.measure == measure].groupby("batch", sort=False):
            bars = whiskers(part["std"])
            axis.errorbar(part["point"], part["mean"], bars, color=_KINDS[kind], marker="o", ms=3, capsize=2)
        axis.set(xlabel="training steps of the network", ylabel=label)
        values = table[table.measure == measure]["mean"]
        if values.min() > 0 and values.max() > 10 * values.min():
            axis.set_yscale("log")
    handles = [plt.Line2D([], [], color=kind_color, marker="o", ms=3) for kind_color in _KINDS.values()]
    figure.legend(handles, _KINDS, ncols=len(_KINDS), loc="outside upper center")
    return finished(figure)


def picks(picture: pd.DataFrame, title: str = "") -> Figure:
    """Draw a class's images on two principal components, in a panel per kind of batch with its images marked.

    picture: columns x, y, and a 0/1 column per kind of batch
    """
    figure, axes = plt.subplots(1, len(_KINDS), figsize=(3.1 * len(_KINDS), 3.3), sharex=True, sharey=True)
    for axis, (kind, kind_color) in zip(axes.flat, _KINDS.items(), strict=True):
        chosen = picture[picture[kind] == 1]
        axis.scatter(picture.x, picture.y, color="#BBBBBB", s=4, linewidths=0)
        axis.scatter(chosen.x, chosen.y, color=kind_color, marker="x", s=26, linewidths=1.3)
        axis.set(title=kind, xlabel="first component")
    axes.flat[0].set_ylabel("second component")
    figure.suptitle(literal(title))
    return finished(figure)


def accuracy_along(table: pd.DataFrame, x: str, xlabel: str) -> Figure:
    """Draw validation accuracy (%) during distillation, with a panel per ipc and a line per method.

    Bars are standard deviations over seeds.

    table: columns ipc, method, accuracy, std, and the column ``x``
    """
    groups = list(table.groupby("ipc", sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(5.0 * len(groups), 3.6), squeeze=False)
    for axis, (ipc, part) in zip(axes.flat, groups, strict=True):
        for method, line in part.groupby("method", sort=False):
            label, bars = literal(method), whiskers(100 * line["std"])
            axis.errorbar(
                line[x], 100 * line.accuracy, bars, label=label, color=color(method), marker="o", ms=3, capsize=2
            )
        stored = f"{ipc} stored image{'s' if ipc > 1 else ''} per class"
        axis.set(xlabel=xlabel, ylabel="validation accuracy (%)", title=stored)
        axis.legend(loc="best")
    return finished(figure)


def paired_gains(gains: pd.DataFrame, xlabel: str) -> Figure:
    """Draw a row per variant: a bar for the mean gain (percentage points), a dot per seed.

    gains: (variants, seeds), fractions
    """
    figure, axis = plt.subplots(figsize=(7.0, 0.7 + 0.32 * len(gains)))
    for place, (_, row) in enumerate(gains.iloc[::-1].iterrows()):
        axis.barh(place, 100 * row.mean(), color=COLORS["idc"], alpha=0.45, height=0.7)
        axis.plot(100 * row, [place] * len(row), "o", color="black", ms=3)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(gains)), list(map(literal, gains.index[::-1])))
    axis.set(xlabel=xlabel)
    return finished(figure)


def against_operations(table: pd.DataFrame) -> Figure:
    """Draw validation accuracy (%) against operations of training: a line for the full data, a point per set.

    table: columns data, operations, accuracy, std
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    for place, (name, part) in enumerate(table.groupby("data", sort=False)):
        set_color = list(_KINDS.values())[1 + place] if len(part) == 1 else "black"
        label, bars = literal(name), whiskers(100 * part["std"])
        axis.errorbar(
            part.operations, 100 * part.accuracy, bars, label=label, color=set_color, marker="o", ms=4, capsize=2
        )
    axis.set_xscale("log")
    axis.set(xlabel="floating-point operations of training (log scale)", ylabel="validation accuracy (%)")
    axis.legend(loc="best")
    return finished(figure)
