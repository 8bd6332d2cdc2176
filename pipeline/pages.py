"""The generated parts of README.md and docs/: ``python -m pipeline.pages`` writes all of them.

A block is the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; the rest of a page is written by hand.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import table as speed
from dreamlib._engine.files import write_atomically
from pipeline.failures import exit_status
from pipeline.params import find_root, read_params
from pipeline.project import Project
from pipeline.report import judged, parameters_page, record, results_page
from pipeline.report.results import Claims
from pipeline.report.tables import markdown, replace_block
from pipeline.stages.figures import evaluations, summary, summary_markdown
from pipeline.studies import best_sets
from pipeline.studies.claims import training_table

Block = Callable[[Path], str]  # project root → Markdown that ends in a line break

SEEDS = "default_seeds"  # the study that repeats the default run with other seeds


def seeds(root: Path) -> str:
    """Return the default run's table over several seeds, and the order of the methods."""
    rows = evaluations(Project(root, read_params(root, SEEDS), SEEDS))
    return f"{summary_markdown(summary(rows))}\n{results_page.method_order(rows)}\n"


def training(root: Path) -> str:
    """Return the comparison of two ways to train networks between matching steps."""
    table = training_table(Claims.open(root)).reset_index()
    return markdown(table.columns, table.values)


BLOCKS: dict[str, dict[str, Block]] = {
    "README.md": {
        "times": lambda root: record.times_table(root, ["make repro", "make test"]),
        "results": results_page.result_rows,
        "claims": results_page.claim_lists,
    },
    "docs/results.md": {
        "default run": results_page.default_run,
        "seeds": seeds,
        "best sets": best_sets.best_sets_text,
        "claims": results_page.claims,
        "training": training,
        "judged": judged.judged_sets,
    },
    "docs/speed.md": {
        "times": record.times_table,
        **{name: lambda _root, content=content: content() for name, content in speed.BLOCKS.items()},
    },
    "docs/parameters.md": {
        "parameters": lambda _root: parameters_page.parameters(),
        "components": lambda _root: parameters_page.components(),
    },
}


def page_text(page: str, text: str, root: Path) -> str:
    """Return a page's text with every generated block computed anew.

    page: key of ``BLOCKS``
    text: the page as it is
    root: the project whose results are shown

    Raise ValueError if a marker is missing or repeated.
    """
    for name, content in BLOCKS[page].items():
        try:
            text = replace_block(text, name, lambda content=content: content(root))
        except ValueError as error:
            raise ValueError(f"{page}, block '{name}': {error}") from error
    return text


def write(root: Path | None = None) -> None:
    """Update every generated block and the README's picture."""
    root = root or find_root()
    for page in BLOCKS:
        path = root / page
        write_atomically(path, page_text(page, path.read_text(encoding="utf-8"), root).encode())
    results_page.before_and_after(root).save(root / results_page.PICTURE)


if __name__ == "__main__":
    sys.exit(exit_status(write))
