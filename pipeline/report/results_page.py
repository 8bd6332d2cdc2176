"""The tables of docs/results.md, from committed results: ``python -m pipeline.report.results_page`` writes them."""

import sys
from pathlib import Path

import pandas as pd

from dreamlib._engine.files import write_atomically
from pipeline.launch_notebook import exit_status
from pipeline.params import find_root, read_params
from pipeline.project import Project
from pipeline.report.tables import between, markdown
from pipeline.stages.figures import evaluations, summary, summary_markdown
from pipeline.studies.claims import Claims, training_table

SEEDS = "default_seeds"  # the study that repeats the default run with other seeds
SEEDS_BEGIN, SEEDS_END = "<!-- seeds: written by `make record` -->", "<!-- end of seeds -->"
TRAINING_BEGIN, TRAINING_END = "<!-- training: written by `make record` -->", "<!-- end of training -->"


def ordered(rows: pd.DataFrame) -> str:
    """Return, for each ipc, the order of the methods by mean accuracy and in how many seeds it is strictly the same.

    >>> found = {"ipc": 1, "method": ["a", "b"] * 2, "seed": [0, 0, 1, 1], "accuracy": [0.3, 0.5, 0.4, 0.4]}
    >>> ordered(pd.DataFrame(found))
    'ipc 1: b > a, in 1 of 2 seeds.'
    """
    told = []
    for ipc, part in rows.groupby("ipc", sort=False):
        table = part.groupby(["seed", "method"], sort=False)["accuracy"].mean().unstack()
        order = table.mean().sort_values(ascending=False).index
        same = (table[order].diff(axis=1).iloc[:, 1:] < 0).all(axis=1).sum()
        told.append(f"ipc {ipc}: {' > '.join(order)}, in {same} of {len(table)} seeds.")
    return " ".join(told)


def results_text(root: Path) -> str:
    """Return docs/results.md with the tables between its markers."""
    rows = evaluations(Project(root, read_params(root, SEEDS), SEEDS))
    training = training_table(Claims.open(root)).reset_index()
    text = (root / "docs" / "results.md").read_text(encoding="utf-8")
    text = between(text, SEEDS_BEGIN, SEEDS_END, lambda: f"{summary_markdown(summary(rows))}\n{ordered(rows)}\n")
    return between(text, TRAINING_BEGIN, TRAINING_END, lambda: markdown(training.columns, training.values))


def write(root: Path) -> None:
    """Bring docs/results.md up to date."""
    write_atomically(root / "docs" / "results.md", results_text(root).encode())


if __name__ == "__main__":
    sys.exit(exit_status(lambda: write(find_root())))
