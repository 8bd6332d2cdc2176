"""Housekeeping of notebooks: ``python -m pipeline.report.notebooks check|clean|html``."""

import argparse
import html
import re
import shutil
import sys
from pathlib import Path

import nbformat

from dreamlib._engine.files import write_atomically
from pipeline.params import find_root, read_params

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECTIONS = {
    "01_clustering": "Clustering: which images represent a class",
    "02_distillation": "Distillation: what happens to the images",
    "03_evaluation": "Evaluation: how well each set trains a network",
    "04_figures": "Results: all settings side by side",
    "05_methods": "Study: every family of methods in the same time",
    "06_claims": "Study: which of DREAM's claims hold at a small budget",
}


LEFT = "Left from other settings than those in params.yaml"


def reset_cells(notebook: nbformat.NotebookNode) -> None:
    """Take random ids and whatever an editor or papermill noted out of every cell, in place; tags stay."""
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        cell.id = f"cell-{index}"


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without outputs, counters and whatever an editor left in its metadata; tags stay."""
    notebook.metadata = METADATA
    reset_cells(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def clean_text(path: Path) -> str:
    """What the file of a clean notebook contains."""
    return nbformat.writes(cleaned(nbformat.read(path, as_version=4))) + "\n"


def check(root: Path) -> list[str]:
    """The names of notebooks that are not clean."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return [path.name for path in paths if path.read_text() != clean_text(path)]


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading."""
    for cell in notebook.cells:
        found = re.match(r"#\s+(.+)", cell.source) if cell.cell_type == "markdown" else None
        if found:
            return found.group(1).strip()
    return "untitled"


def with_mathml(text: str) -> str:
    """Markdown with its TeX formulas as MathML, which browsers draw themselves: the pages need no network.

    >>> "<math" in with_mathml("where $x$ is") and "$" not in with_mathml("$$x^2$$")
    True
    """
    from latex2mathml.converter import convert

    parts = re.split(r"(`[^`]*`)", text)  # a dollar inside code is a dollar
    for index in range(0, len(parts), 2):
        part = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), parts[index], flags=re.DOTALL)
        parts[index] = re.sub(r"\$([^$\n]+)\$", lambda m: convert(m[1]), part)
    return "".join(parts)


def to_html(root: Path) -> Path:
    """Every executed notebook as a page without code, and an index page; returns the index.

    Pages of settings that params.yaml does not list stand apart: they may be of another data set.

    Raises FileNotFoundError when nothing has been executed yet.
    """
    from nbconvert import HTMLExporter

    reports, out = root / "reports", root / "reports" / "html"
    paths = sorted(p for p in reports.rglob("*.ipynb") if not p.name.startswith(".") and out not in p.parents)
    if not paths:
        raise FileNotFoundError("reports/ holds no executed notebook; run `make repro` first")
    shutil.rmtree(out, ignore_errors=True)
    # Not embed_images: it reparses the text with a parser that takes MathML apart, and plots are embedded anyway.
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    entries: dict[str, list[str]] = {}
    params = read_params(root)
    points = [f"ipc{ipc}-seed{seed}" for ipc in params.ipc for seed in params.seeds]
    listed = {*points, *(f"{method}-{point}" for method in params.methods for point in points)}
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_mathml(cell.source)
        relative = path.relative_to(reports).with_suffix(".html")
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": f"{title_of(notebook)} – {path.stem}"}})
        write_atomically(out / relative, page.encode())
        section = relative.parts[0].removesuffix(".html")
        name = path.stem if len(relative.parts) > 1 else title_of(notebook)
        if len(relative.parts) > 1 and path.stem not in listed:
            section = LEFT
        entries.setdefault(section, []).append(f'<li><a href="{relative.as_posix()}">{html.escape(name)}</a></li>')
    write_atomically(out / "index.html", _index(entries).encode())
    return out / "index.html"


def _index(entries: dict[str, list[str]]) -> str:
    # Results first: that is what a reader came for.
    ordered = sorted(entries, key=lambda section: (section == LEFT, section != "04_figures", section))
    body = "\n".join(
        f"<h2>{html.escape(SECTIONS.get(section, section))}</h2>\n<ul>{''.join(entries[section])}</ul>"
        for section in ordered
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>DREAM: the report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font-family:system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;line-height:1.5}}
ul{{columns:2;padding-left:1.2rem}}h2{{font-size:1.1rem;margin-top:2rem}}a{{color:#0b5cad}}</style></head>
<body><h1>DREAM: the report</h1>
<p>Executed notebooks of the pipeline, without their code. Each page ends with its provenance.</p>
{body}
</body></html>
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
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
        try:
            print(f"open {to_html(root).relative_to(root)}")
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
