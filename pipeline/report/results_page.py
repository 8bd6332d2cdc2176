"""The generated parts of docs/results.md, and those shown in the README."""

from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.report import figures
from pipeline.report.labels import CLASSES_SHOWN
from pipeline.report.tables import markdown, percent

SHOWN = "dream-ipc1-seed0"  # the set that the README shows before and after distillation
PICTURE = Path("docs") / "before_after.png"
VERDICTS = ("holds", "holds partly", "not seen at this budget")  # order of the README's lists


def default_run(root: Path) -> str:
    """Return the summary table written by the stage `figures`."""
    return (root / "results" / "summary.md").read_text(encoding="utf-8")


def result_rows(root: Path) -> str:
    """Return the summary with the README's columns."""
    table = pd.read_csv(root / "results" / "summary.csv")
    columns = ("ipc", "method", "test accuracy (%)", "training images", "stored floats", "iterations")
    rows = [
        (r.ipc, r.method, percent(r.accuracy, r.std), r.training_images, f"{r.stored_floats:,}", r.iterations)
        for r in table.itertuples()
    ]
    return markdown(columns, rows)


def method_order(rows: pd.DataFrame) -> str:
    """Return, per ipc, the order of the methods by mean accuracy, and in how many seeds it holds strictly.

    >>> rows = {"ipc": 1, "method": ["a", "b"] * 2, "seed": [0, 0, 1, 1], "accuracy": [0.3, 0.5, 0.4, 0.4]}
    >>> method_order(pd.DataFrame(rows))
    'ipc 1: b > a, in 1 of 2 seeds.'
    """
    sentences = []
    for ipc, part in rows.groupby("ipc", sort=False):
        table = part.groupby(["seed", "method"], sort=False)["accuracy"].mean().unstack()
        order = table.mean().sort_values(ascending=False).index
        same = (table[order].diff(axis=1).iloc[:, 1:] < 0).all(axis=1).sum()
        sentences.append(f"ipc {ipc}: {' > '.join(order)}, in {same} of {len(table)} seeds.")
    return " ".join(sentences)


def claims(root: Path) -> str:
    """Return every claim with its measurement and verdict, as written by the study of claims."""
    return (root / "results" / "claims" / "verdicts.md").read_text(encoding="utf-8")


def claim_lists(root: Path) -> str:
    """Return a list of claims per verdict, read from results/claims/verdicts.md."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in claims(root).splitlines() if line[:1] == "|"]
    lists: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for claim, *_measured, verdict in rows[2:]:  # below the head and its rule
        lists.setdefault(verdict.strip("*"), []).append(claim)
    parts = []
    for verdict, names in lists.items():
        if names:
            heading = f"**{verdict.capitalize()}** ({len(names)} of {len(rows) - 2}):"
            parts.append("\n".join([heading, *(f"- {name}" for name in names)]))
    return "\n\n".join(parts) + "\n"


def before_and_after(root: Path) -> Image.Image:
    """Return the canvases of ``SHOWN`` at the first snapshot above those at the last, one column per class, at most 40.

    Each canvas pixel is enlarged to 3×3 pixels.
    """
    snapshots = load_file(root / "results" / "snapshots" / f"{SHOWN}.safetensors")
    first, *_, last = sorted(snapshots, key=int)
    canvases = torch.cat([snapshots[step][:CLASSES_SHOWN] for step in (first, last)])
    return figures.enlarged(canvases, len(canvases) // 2, scale=3)
