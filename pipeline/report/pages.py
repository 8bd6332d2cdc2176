"""The report as HTML: a page per executed notebook, without its code, and a front page that summarises them."""

import base64
import html
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from dreamlib._engine.files import write_atomically
from pipeline.params import Params, read_params

SECTIONS = {
    "01_clustering": "Clustering: which images represent a class",
    "02_distillation": "Distillation: what happens to the images",
    "03_evaluation": "Evaluation: how well each set trains a network",
    "04_figures": "Results: all settings side by side",
    "05_methods": "Study: every family of methods in the same time",
    "06_claims": "Study: which of DREAM's claims hold at a small budget",
    "judged": "Judged sets: how good each of them is",
}
UNLISTED = "Settings that params.yaml no longer lists"
INTRODUCTION = """<h1>DREAM: the report</h1>
<p>Dataset distillation replaces a training set by a few synthetic images per class. These pages show what DREAM (Liu et
al., ICCV 2023) and the methods around it make of one data set. They are the executed notebooks of the pipeline, without
their code; each ends with the data, parameters and versions behind its numbers.</p>"""
STYLE = Path(__file__).with_name("pages.css")


@dataclass(frozen=True)
class Page:
    """An executed notebook, rendered.

    path: relative to reports/, ending in .html
    section: a key of ``SECTIONS``, or ``UNLISTED``
    title: the notebook's first heading
    body: HTML
    answer: the first Markdown output, which by convention answers the title
    picture: the first PNG output, which by convention shows that answer; empty if there is none
    """

    path: Path
    section: str
    title: str
    body: str
    answer: str
    picture: bytes

    @property
    def name(self) -> str:
        """Link text: the setting, or the title if the notebook runs once."""
        return self.path.stem if self.path.parent.name else self.title

    @property
    def picture_path(self) -> Path:
        """Path of the picture, relative to the front page."""
        return self.path.with_suffix(".png")

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The anchor and text of every second-level heading."""
        return re.findall(r'<h2[^>]*\bid="([^"]+)"[^>]*>(.*?)<a class="anchor-link"', self.body, flags=re.DOTALL)


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first heading."""
    for cell in notebook.cells:
        heading = re.match(r"#\s+(.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading:
            return heading.group(1).strip()
    return "untitled"


def first_output(notebook: nbformat.NotebookNode, kind: str) -> str:
    """Return the notebook's first output of a MIME type; empty if there is none."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return next((output["data"][kind] for output in outputs if kind in output.get("data", {})), "")


def with_mathml(text: str) -> str:
    """Return Markdown with its TeX formulas as MathML, which browsers render without loading a script.

    >>> "<math" in with_mathml("where $x$ is") and "$" not in with_mathml("$$x^2$$")
    True
    """
    from latex2mathml.converter import convert

    parts = re.split(r"(`[^`]*`)", text)  # leave dollar signs in code as they are
    for index in range(0, len(parts), 2):
        part = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), parts[index], flags=re.DOTALL)
        parts[index] = re.sub(r"\$([^$\n]+)\$", lambda m: convert(m[1]), part)
    return "".join(parts)


def render(path: Path, reports: Path, listed: Sequence[str]) -> Page:
    """Return the page of one executed notebook.

    path: the notebook, below ``reports``
    listed: names of the settings in params.yaml; pages of other settings get their own section
    """
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    title, relative = title_of(notebook), path.relative_to(reports).with_suffix(".html")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    # Not embed_images: it parses the text anew with a parser that breaks MathML, and plots are embedded anyway.
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'href="([\w/.-]+)\.ipynb"', r'href="\1.html"', body)
    body = re.sub(r'alt="No description[^"]*"', f'alt="{html.escape(title)}"', body)
    runs_once = len(relative.parts) == 1
    section = relative.stem if runs_once else relative.parts[0]
    return Page(
        path=relative,
        section=section if runs_once or section == "judged" or relative.stem in listed else UNLISTED,
        title=title,
        body=body,
        answer=first_output(notebook, "text/markdown"),
        picture=base64.b64decode(first_output(notebook, "image/png")),
    )


def write_report(root: Path) -> Path:
    """Write reports/html: every executed notebook as a page and a front page; return the front page's path.

    Only reports/ and results/ are read. Raise FileNotFoundError if no notebook has been executed.
    """
    reports, out, params = root / "reports", root / "reports" / "html", read_params(root)
    paths = sorted(p for p in reports.rglob("*.ipynb") if not p.name.startswith(".") and out not in p.parents)
    if not paths:
        raise FileNotFoundError("reports/ holds no executed notebook; run `make repro` first")
    points = [f"ipc{ipc}-seed{seed}" for ipc in params.ipc for seed in params.seeds]
    listed = [*points, *(f"{method}-{point}" for point in points for method in params.methods)]  # reading order
    pages = [render(path, reports, listed) for path in paths]
    pages.sort(key=lambda page: (page.section == UNLISTED, page.section, _place(page, listed), page.path))
    shutil.rmtree(out, ignore_errors=True)
    for before, page, after in zip([None, *pages[:-1]], pages, [*pages[1:], None], strict=True):
        write_atomically(out / page.path, _page(page, before, after).encode())
        if page.picture:
            write_atomically(out / page.picture_path, page.picture)
    write_atomically(out / "index.html", _front_page(pages, root, params).encode())
    return out / "index.html"


def _place(page: Page, listed: Sequence[str]) -> int:
    return listed.index(page.path.stem) if page.path.stem in listed else len(listed)


def _document(title: str, navigation: str, contents: Sequence[tuple[str, str]], main: str) -> str:
    main = main.replace(" ± ", "&nbsp;±&nbsp;")  # a mean and its deviation stay on one line
    items = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in contents)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE.read_text(encoding="utf-8")}</style></head>
<body>
{navigation}
<nav class="contents" aria-label="On this page"><b>On this page</b><ul>{items}</ul></nav>
<main>
{main}
</main>
{navigation}
</body></html>
"""


def _page(page: Page, before: Page | None, after: Page | None) -> str:
    up = "../" * (len(page.path.parts) - 1)
    links = [f'<a href="{up}index.html">Front page</a>']
    for neighbour, text in ((before, "← {}"), (after, "{} →")):
        if neighbour:
            link = text.format(neighbour.path.with_suffix("") if neighbour.path.parent.name else neighbour.title)
            links.append(f'<a href="{up}{neighbour.path.as_posix()}">{html.escape(link)}</a>')
    navigation = f'<nav class="neighbours" aria-label="Pages">{" ".join(links)}</nav>'
    return _document(f"{page.title} – {page.path.stem}", navigation, page.contents, page.body)


def _front_page(pages: Sequence[Page], root: Path, params: Params) -> str:
    """Return the front page; sections without results are omitted."""
    by_path = {page.path.as_posix(): page for page in pages}
    sections = {
        "The result": _result(by_path, root),
        "The images before and after": _images(by_path, root, params),
        "DREAM's claims": _claims(by_path, root),
        "All pages": _all_pages(pages),
    }
    shown = {title: text for title, text in sections.items() if text}
    anchors = [(title.lower().replace(" ", "-").replace("'", ""), title) for title in shown]
    parts = [f'<h2 id="{anchor}">{title}</h2>\n{shown[title]}' for anchor, title in anchors]
    return _document("DREAM: the report", "", anchors, "\n".join([INTRODUCTION, *parts]))


def _markdown_file(path: Path) -> str:
    return _markdown(path.read_text(encoding="utf-8")) if path.is_file() else ""


def _markdown(text: str) -> str:
    from nbconvert.filters import markdown2html

    return markdown2html(text)


def _figure(page: Page) -> str:
    """Return the page's picture with a caption that links to the page."""
    link = page.path.as_posix()
    picture = f'<a href="{link}"><img src="{page.picture_path.as_posix()}" alt="{html.escape(page.title)}"></a>'
    caption = f'<figcaption>From <a href="{link}">{html.escape(page.name)}</a></figcaption>'
    return f"<figure>{picture if page.picture else ''}{caption}</figure>"


def _result(by_path: Mapping[str, Page], root: Path) -> str:
    page = by_path.get("04_figures.html")
    table = _markdown_file(root / "results" / "summary.md")
    return f"{_markdown(page.answer)}{_figure(page)}{table}" if page else table


def _images(by_path: Mapping[str, Page], root: Path, params: Params) -> str:
    """Return, per ipc, the picture of the distillation with the highest accuracy."""
    path = root / "results" / "summary.csv"
    if not path.is_file():
        return ""
    table = pd.read_csv(path)
    distilled = table[table.iterations > 0].sort_values("accuracy", ascending=False)
    best = distilled.drop_duplicates("ipc").sort_values("ipc")
    names = [f"02_distillation/{row.method}-ipc{row.ipc}-seed{params.seeds[0]}.html" for row in best.itertuples()]
    return "".join(_figure(by_path[name]) for name in names if name in by_path)


def _claims(by_path: Mapping[str, Page], root: Path) -> str:
    verdicts = _markdown_file(root / "results" / "claims" / "verdicts.md")
    page = by_path.get("06_claims.html")
    return verdicts + (_figure(page) if verdicts and page else "")


def _all_pages(pages: Sequence[Page]) -> str:
    """Return the links to all pages, under a heading per section."""
    parts = []
    for section in dict.fromkeys(page.section for page in pages):
        cards = "".join(_card(page) for page in pages if page.section == section)
        parts.append(f"<h3>{html.escape(SECTIONS.get(section, section))}</h3>\n<ul class='cards'>{cards}</ul>")
    return "\n".join(parts)


def _card(page: Page) -> str:
    image = f'<img src="{page.picture_path.as_posix()}" alt="" loading="lazy">' if page.picture else ""
    return f'<li><a href="{page.path.as_posix()}">{image}<span>{html.escape(page.name)}</span></a></li>'
