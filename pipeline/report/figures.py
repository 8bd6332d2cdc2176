"""Figures of the report, from a table or from images; no arithmetic worth a test."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dreamlib._engine.files import write_atomically
from dreamlib._engine.torchvision_import import torchvision
from dreamlib.data.types import as_float

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


def style() -> None:
    """Set the style that all figures of the report share."""
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
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
    """Close the figure for pyplot and return it: a notebook then shows it once, where it is displayed."""
    plt.close(figure)
    return figure


def color(method: str) -> str:
    """Return the colour that a method has in every figure."""
    return COLORS.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


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
    axis.set_title(title)
    axis.grid(False)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    return figure, axis


def image_rows(groups: Mapping[str, Tensor], title: str = "", columns: int = 16, size: float = 0.62) -> Figure:
    """Draw a labelled row of images for each group, at most ``columns`` of them.

    groups: name → images (n, C, H, W)
    size: width of an image, inches
    """
    groups = {name: as_float(images) for name, images in groups.items()}
    columns = min(columns, max(len(images) for images in groups.values()))
    sample = next(iter(groups.values()))
    blank = sample.new_ones(sample.shape[1:])
    # Rows shorter than the longest are filled up with blank images.
    cells = [images[i] if i < len(images) else blank for images in groups.values() for i in range(columns)]
    figure, axis = _draw(_grid(cells, columns), title, size * columns)
    pitch = sample.shape[-2] + 2
    axis.set_yticks([(row + 0.5) * pitch - 1 for row in range(len(groups))], list(groups), fontsize=9)
    axis.tick_params(length=0)
    return finished(figure)


def contact_sheet(canvases: Tensor, classes: Sequence[str], title: str = "", per_row: int = 10) -> Figure:
    """Draw the stored canvases of a set (K·ipc, C, H, W), a labelled row for each class with its first ``per_row``."""
    ipc = len(canvases) // len(classes)
    if ipc == 1:  # a single column would waste the page: put the classes side by side
        return captioned({name: canvases[c] for c, name in enumerate(classes)}, title)
    groups = {name: canvases[c * ipc : c * ipc + min(ipc, per_row)] for c, name in enumerate(classes)}
    return image_rows(groups, title, columns=per_row)


def captioned(images: Mapping[str, Tensor], title: str = "", columns: int = 5, size: float = 1.4) -> Figure:
    """Draw a grid of images (C, H, W), each with its name below."""
    h, w = next(iter(images.values())).shape[-2:]
    label = max(6, h // 4)  # pixels left free below each image for its name
    padded = [torch.nn.functional.pad(as_float(image), (0, 0, 0, label), value=1.0) for image in images.values()]
    figure, axis = _draw(_grid(padded, columns), title, size * columns)
    axis.set_yticks([])
    for index, name in enumerate(images):
        x, y = (index % columns) * (w + 2) + w / 2, (index // columns) * (h + label + 2) + h
        axis.text(x, y, name, ha="center", va="top", fontsize=9)
    return finished(figure)


def write_contact_sheet(canvases: Tensor, num_classes: int, path: Path, scale: int = 4) -> None:
    """Write canvases (K·ipc, C, H, W) as one PNG, a row per class (at ipc 1 one row of all classes).

    scale: width of a canvas's pixel in the PNG, pixels
    """
    ipc = len(canvases) // num_classes
    columns = ipc if ipc > 1 else min(num_classes, 10)
    grid = torchvision.utils.make_grid(canvases.detach().clamp(0, 1).cpu(), nrow=columns, padding=1, pad_value=1.0)
    pixels = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    content = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(content, "png")
    write_atomically(path, content.getvalue())


def scatter(points: np.ndarray, marks: Mapping[str, np.ndarray], clusters: np.ndarray, title: str) -> Figure:
    """Draw points coloured by cluster, a panel for each way to mark some of them.

    points: (n, 2)
    marks: title of a panel → rows of ``points`` that it marks
    clusters: (n,), the cluster of each point
    """
    figure, axes = plt.subplots(1, len(marks), figsize=(5.2 * len(marks), 4.4), sharex=True, sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes.flat, marks.items(), strict=True):
        axis.scatter(*points.T, c=clusters, cmap="tab20", s=4, alpha=0.35, linewidths=0)
        axis.scatter(*points[rows].T, c="black", marker="x", s=36, linewidths=1.6)
        axis.set(title=name, xlabel="first principal component", ylabel="second principal component")
    figure.suptitle(title)
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
    """Draw column ``y`` against column ``x``, a line for each value of column ``by``.

    spread: the column of half-widths of the error bars
    percent: whether ``y`` is a fraction to be drawn in percent
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    factor = 100 if percent else 1
    for name, part in table.groupby(by, sort=False):
        bars = part[spread] * factor if spread else None
        axis.errorbar(
            part[x], part[y] * factor, yerr=bars, label=str(name), color=color(str(name)), marker="o", ms=3, capsize=2
        )
    if logx:
        axis.set_xscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if table[by].nunique() > 1:
        axis.legend(title=by)
    return finished(figure)


def bars(table: pd.DataFrame, title: str = "", by: str = "ipc") -> Figure:
    """Draw test accuracy (%) with its standard deviation, the methods side by side, a group for each ``by``."""
    methods, groups = list(dict.fromkeys(table.method)), list(dict.fromkeys(table[by]))
    figure, axis = plt.subplots(figsize=(1.8 + 0.6 * len(methods) * len(groups), 4.0))
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        part = table[table.method == method].set_index(by).reindex(groups)
        places = [group + (index - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        drawn = axis.bar(
            places, 100 * part.accuracy, width, yerr=100 * part["std"], capsize=3, label=method, color=color(method)
        )
        axis.bar_label(drawn, [f"{100 * accuracy:.1f}" for accuracy in part.accuracy], fontsize=8, padding=2)
    axis.set_xticks(range(len(groups)), [f"{by} {group}" for group in groups])
    axis.set(ylabel="test accuracy (%)", title=title)
    axis.set_ylim(0, 105)
    axis.legend(ncols=len(methods), loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return finished(figure)


def ranking(views: pd.DataFrame, title: str = "") -> Figure:
    """Draw the test accuracy (%) of every method, best on top: a bar for the mean, a dot for each seed.

    views: a row for each trained network, with method, seed, view, network, label_kind, accuracy; the colour of a bar
        tells hard labels from soft ones
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
    axis.set_yticks(range(len(means)), [method for method, _ in means.index])
    axis.set(xlabel="test accuracy (%), dots are seeds", xlim=(0, 100))
    axis.set_title(title, loc="left")
    handles = [plt.Rectangle((0, 0), 1, 1, color=label_color, alpha=0.45) for label_color in colors.values()]
    names = [f"{kind} labels" for kind in colors]
    axis.legend(handles, names, ncols=2, loc="upper right", bbox_to_anchor=(1.0, -0.08))
    return finished(figure)


def storage(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw accuracy (%) against stored floats, a line for each method."""
    ordered = table.sort_values("stored_floats")
    return lines(
        ordered, "stored_floats", "accuracy", "method", "stored floats (log scale)", "test accuracy (%)", title,
        spread="std", percent=True, logx=True,
    )  # fmt: skip
