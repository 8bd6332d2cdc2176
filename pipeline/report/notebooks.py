"""Keep notebooks clean and turn executed ones into HTML: ``python -m pipeline.report.notebooks check|clean|html``."""

import argparse
import sys
from pathlib import Path

import nbformat

from dreamlib._engine.files import write_atomically
from pipeline.params import find_root

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def reset_cells(notebook: nbformat.NotebookNode) -> None:
    """Remove random ids and all metadata except tags from every cell, in place."""
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        cell.id = f"cell-{index}"


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove outputs, execution counts and editor metadata from a notebook, in place; return it."""
    notebook.metadata = METADATA
    reset_cells(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def clean_text(path: Path) -> str:
    """Return the text of a notebook's file after cleaning."""
    return nbformat.writes(cleaned(nbformat.read(path, as_version=4))) + "\n"


def check(root: Path) -> list[str]:
    """Return the names of the notebooks that are not clean."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return [path.name for path in paths if path.read_text(encoding="utf-8") != clean_text(path)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.notebooks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("action", choices=["check", "clean", "html"])
    action, root = parser.parse_args(arguments).action, find_root()
    if action == "clean":
        for path in sorted((root / "notebooks").glob("*.ipynb")):
            write_atomically(path, clean_text(path).encode())
    elif action == "check" and (dirty := check(root)):
        print(f"error: not clean: {', '.join(dirty)}; run `make clean-notebooks`", file=sys.stderr)
        return 1
    elif action == "html":
        from pipeline.report.pages import (
            write_report,  # nbconvert is slow to import, and the launcher needs this module
        )

        try:
            print(f"open {write_report(root).relative_to(root)}")
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
