"""Figures of the report, drawn from tables or images.

Of many classes, rows or large images, a figure shows as many as fit, and its title gives their number.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreamlib._engine.files import write_atomically
from dreamlib.data.types import as_float
from pipeline.report.labels import CLASSES_SHOWN, class_labels, counted, literal

# Okabe and Ito's colours, which readers with any colour vision can tell apart.
COLORS = {
    "random": "#999999",
    "kmeans": "#E69F00",
    "idc": "#0072B2",
    "idc_same_batch": "#0072B2",
    "dream": "#D55E00",
    "this set": "#009E73",
}
_SPARE = ("#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
_DPI = 110
_COLUMNS = 16  # maximum number of images in a row
_HEIGHT = 14.0  # maximum height of all rows of images, inches
_SHEET, _ENLARGED_SHEET = 1500, 3000  # maximum side of a contact sheet, in canvas pixels and in PNG pixels


def style() -> None:
    """Set the style that all figures and tables of the report share."""
    pd.set_option("display.html.use_mathjax", False)  # leave dollar signs as they are
    mpl.rcParams.update(
        {
            "figure.dpi": _DPI,
            "font.size": 10,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "dream",
        }
    )


def finished(figure: Figure) -> Figure:
    """Close the figure in pyplot and return it, so that a notebook shows it only where it is displayed."""
    plt.close(figure)
    return figure


def color(method: str) -> str:
    """Return the colour that a method has in every figure."""
    return COLORS.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


def whiskers(std: pd.Series) -> pd.Series | None:
    """Return the half-widths of error bars, or None if all are missing: the legend then shows no error bar either."""
    return None if std.isna().all() else std


def _grid(images: Sequence[Tensor], columns: int, gap: int = 2) -> np.ndarray:
    """Return images (C, H, W) in rows of ``columns`` on white, as one array (H', W', 3)."""
    _, h, w = images[0].shape
    rows = math.ceil(len(images) / columns)
    sheet = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), dtype=np.float32)
    for index, image in enumerate(images):
        top, left = (index // columns) * (h + gap), (index % columns) * (w + gap)
        pixels = image.detach().float().clamp(0, 1).cpu().permute(1, 2, 0).expand(h, w, 3).numpy()
        sheet[top : top + h, left : left + w] = pixels
    return sheet


def _draw(sheet: np.ndarray, title: str, width: float) -> tuple[Figure, plt.Axes]:
    height = width * sheet.shape[0] / sheet.shape[1]
    figure, axis = plt.subplots(figsize=(width + 1.4, height + 0.5))
    axis.imshow(sheet, interpolation="nearest")
    axis.set_title(literal(title))
    axis.grid(False)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    return figure, axis


def _reduced(images: Tensor, size: float) -> Tensor:
    """Return images (n, C, H, W) as floats, downscaled to what is drawn at ``size`` inches."""
    images, side = as_float(images), max(1, round(size * _DPI))
    if max(images.shape[-2:]) <= side or not len(images):
        return images
    return F.interpolate(images.detach().float(), size=(side, side), mode="area")


def _rows(labels: Sequence[str], images: Sequence[Tensor], title: str, columns: int, size: float) -> Figure:
    """Draw a row of images (n, C, H, W) per label; short rows and small images are padded with white."""
    size = min(size, _HEIGHT / len(images))
    images = [_reduced(row[:columns], size) for row in images]
    side = max(max(row.shape[-2:]) for row in images)
    images = [F.pad(row, (0, side - row.shape[-1], 0, side - row.shape[-2]), value=1.0) for row in images]
    blank = torch.ones_like(max(images, key=len)[0])
    cells = [row[i] if i < len(row) else blank for row in images for i in range(columns)]
    figure, axis = _draw(_grid(cells, columns), title, size * columns)
    pitch = blank.shape[-2] + 2
    axis.set_yticks([(row + 0.5) * pitch - 1 for row in range(len(images))], list(map(literal, labels)), fontsize=9)
    axis.tick_params(length=0)
    widest = max(label.get_window_extent().width for label in axis.get_yticklabels()) / figure.dpi
    figure.set_figwidth(figure.get_figwidth() + max(0, widest - 1.25))  # keep the images' size next to wide labels
    return finished(figure)


def _titled(title: str, shown: str) -> str:
    return f"{title}\n({shown})" if shown else title


def image_rows(groups: Mapping[str, Tensor], title: str = "", columns: int = _COLUMNS, size: float = 0.62) -> Figure:
    """Draw a labelled row of images per group, with at most ``columns`` images and never more than 16.

    groups: name → images (n, C, H, W)
    size: width of an image, inches; less if there are many rows
    """
    longest = max(len(images) for images in groups.values())
    columns = min(columns, _COLUMNS, longest)
    title = _titled(title, counted(columns, longest, "columns"))
    return _rows(list(groups), list(groups.values()), title, columns, size)


def class_sheet(images: Iterable[Tensor], classes: Sequence[str], title: str = "", per_row: int = 10) -> Figure:
    """Draw a labelled row of the first ``per_row`` images per class; if each class has one image, all side by side.

    images: (n, C, H, W) per class; the iterable is read no further than the classes shown
    """
    labels = class_labels(classes[:CLASSES_SHOWN])
    shown = [row for _, row in zip(labels, images, strict=False)]
    title = _titled(title, counted(len(labels), len(classes), "classes"))
    if all(len(row) == 1 for row in shown):
        return captioned(torch.cat(shown), labels, title)
    return _rows(labels, shown, title, min(per_row, max(map(len, shown))), 0.62)


def contact_sheet(canvases: Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """Draw the stored canvases of a set (K·ipc, C, H, W) as ``class_sheet`` does."""
    return class_sheet(canvases.split(len(canvases) // len(classes)), classes, title)


def captioned(images: Tensor, names: Sequence[str], title: str = "") -> Figure:
    """Draw a grid of images (n, C, H, W), each with its name below."""
    columns, size = 5, 1.4  # inches
    images = _reduced(images, size)
    h, w = images.shape[-2:]
    label = max(6, h // 4)  # pixels left free below each image for its name
    padded = F.pad(images, (0, 0, 0, label), value=1.0)
    figure, axis = _draw(_grid(list(padded), columns), title, size * columns)
    axis.set_yticks([])
    for index, name in enumerate(names):
        x, y = (index % columns) * (w + 2) + w / 2, (index // columns) * (h + label + 2) + h
        axis.text(x, y, literal(name), ha="center", va="top", fontsize=9)
    return finished(figure)


def write_contact_sheet(canvases: Tensor, num_classes: int, path: Path, scale: int = 4) -> None:
    """Write canvases (K·ipc, C, H, W) as one PNG, a row per class (at ipc 1 rows of ten classes).

    At most 40 classes and 1,500 canvas pixels on a side are shown.

    scale: PNG pixels per canvas pixel; reduced if the PNG would exceed 3,000 pixels on a side
    """
    ipc, (h, w) = len(canvases) // num_classes, canvases.shape[-2:]
    rows, columns = (max(1, _SHEET // (side + 1)) for side in (h, w))
    if ipc == 1:
        columns = min(num_classes, 10, columns)
        canvases = canvases[: min(CLASSES_SHOWN, rows * columns)]
    else:
        rows, columns = min(num_classes, CLASSES_SHOWN, rows), min(ipc, columns)
        canvases = canvases.unflatten(0, (num_classes, ipc))[:rows, :columns].flatten(0, 1)
    content = io.BytesIO()
    enlarged(canvases, columns, scale).save(content, "png")
    write_atomically(path, content.getvalue())


def enlarged(canvases: Tensor, columns: int, scale: int) -> Image.Image:
    """Return canvases (n, C, H, W) in rows of ``columns`` with a white frame, enlarged ``scale`` times.

    ``scale`` is reduced if the picture would exceed 3,000 pixels on a side.
    """
    grid = np.pad(_grid(list(canvases), columns, gap=1), ((1, 1), (1, 1), (0, 0)), constant_values=1)
    picture = Image.fromarray((grid * 255).round().astype(np.uint8))
    scale = max(1, min(scale, _ENLARGED_SHEET // max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def scatter(points: np.ndarray, marks: Mapping[str, np.ndarray], clusters: np.ndarray, title: str) -> Figure:
    """Draw points coloured by cluster, with a panel for each entry of ``marks``.

    points: (n, 2)
    marks: title of a panel → rows of ``points`` marked in it
    clusters: (n,), the cluster of each point
    """
    figure, axes = plt.subplots(1, len(marks), figsize=(5.2 * len(marks), 4.4), sharex=True, sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes.flat, marks.items(), strict=True):
        size = min(30, max(4, 6000 / len(points)))  # few points are drawn larger
        axis.scatter(*points.T, c=clusters, cmap="tab20", s=size, alpha=0.5, linewidths=0)
        axis.scatter(*points[rows].T, c="black", marker="x", s=36, linewidths=1.6)
        axis.set(title=literal(name), xlabel="first principal component", ylabel="second principal component")
    figure.suptitle(literal(title))
    return finished(figure)


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    xlabel: str,
    ylabel: str,
    title: str = "",
    spread: str | None = None,
    percent: bool = False,
    logx: bool = False,
) -> Figure:
    """Draw column ``y`` against column ``x``, one line per value of column ``by``.

    spread: column with the half-widths of the error bars
    percent: whether ``y`` is a fraction to be drawn in percent
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    factor = 100 if percent else 1
    for name, part in table.groupby(by, sort=False):
        bars = whiskers(part[spread] * factor) if spread else None
        label, line_color = literal(str(name)), color(str(name))
        axis.errorbar(part[x], part[y] * factor, yerr=bars, label=label, color=line_color, marker="o", ms=3, capsize=2)
    if logx:
        axis.set_xscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel, title=literal(title))
    if table[by].nunique() > 1:
        axis.legend(title=by, loc="best")
    return finished(figure)


def bars(table: pd.DataFrame, title: str = "", by: str = "ipc") -> Figure:
    """Draw test accuracy (%) with its standard deviation, the methods side by side, in one group per ``by``.

    A bar has no whisker if the standard deviation is missing.
    """
    methods, groups = list(dict.fromkeys(table.method)), list(dict.fromkeys(table[by]))
    figure, axis = plt.subplots(figsize=(1.8 + 0.6 * len(methods) * len(groups), 4.0))
    width, handles = 0.8 / len(methods), []
    for index, method in enumerate(methods):
        part = table[table.method == method].set_index(by).reindex(groups)
        places = [group + (index - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        for place, row in zip(places, part.itertuples(), strict=True):
            whisker = None if math.isnan(row.std) else 100 * row.std
            drawn = axis.bar(place, 100 * row.accuracy, width, yerr=whisker, capsize=3, color=color(method))
            axis.bar_label(drawn, [f"{100 * row.accuracy:.1f}"], fontsize=8, padding=2)
        handles.append(drawn)
    axis.set_xticks(range(len(groups)), [literal(f"{by} {group}") for group in groups])
    axis.set(ylabel="test accuracy (%)", title=literal(title))
    axis.set_ylim(0, 105)
    entry = 0.5 + 0.09 * max(map(len, methods))  # width of a method in the legend, inches
    columns = min(len(methods), max(1, int(figure.get_figwidth() / entry)))
    names = list(map(literal, methods))
    axis.legend(handles, names, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return finished(figure)


def ranking(views: pd.DataFrame, title: str = "") -> Figure:
    """Draw the test accuracy (%) of every method, best on top: a bar for the mean, a dot per seed.

    The colour of a bar distinguishes hard from soft labels.

    views: one row per trained network, with method, seed, view, network, label_kind, accuracy
    """
    rows = views[(views.view == "protocol") & (views.network == views.network.iloc[0])]
    means = rows.groupby(["method", "label_kind"])["accuracy"].mean().sort_values()
    figure, axis = plt.subplots(figsize=(7.0, 0.6 + 0.3 * len(means)))
    colors = {"hard": COLORS["idc"], "soft": COLORS["kmeans"]}
    for place, ((method, kind), mean) in enumerate(means.items()):
        axis.barh(place, 100 * mean, color=colors[kind], alpha=0.45, height=0.7)
        dots = 100 * rows[rows.method == method]["accuracy"]
        axis.plot(dots, [place] * len(dots), "o", color="black", ms=3)
        axis.text(101, place, f"{100 * mean:.1f}", va="center", fontsize=9)
    axis.set_yticks(range(len(means)), [literal(method) for method, _ in means.index])
    axis.set(xlabel="test accuracy (%), dots are seeds", xlim=(0, 100))
    axis.set_title(literal(title), loc="left")
    handles = [plt.Rectangle((0, 0), 1, 1, color=label_color, alpha=0.45) for label_color in colors.values()]
    names = [f"{kind} labels" for kind in colors]
    axis.legend(handles, names, ncols=2, loc="upper right", bbox_to_anchor=(1.0, -0.08))
    return finished(figure)


def storage(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw accuracy (%) against stored floats, one line per method."""
    ordered = table.sort_values("stored_floats")
    return lines(
        ordered, "stored_floats", "accuracy", "method", "stored floats (log scale)", "test accuracy (%)", title,
        spread="std", percent=True, logx=True,
    )  # fmt: skip
