"""The HTML report: pages that link to each other, a front page read from results, and contact sheets."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

from pipeline.params import find_root
from pipeline.report import figures
from pipeline.report.notebooks import main
from pipeline.report.pages import with_mathml, write_report

PARAMS = """\
dataset: digits
ipc: [1]
methods: [{}]
seeds: [0]
budget: b
budgets: {{b: {{}}}}
"""
METHODS = "method: {dream: {}, idc: {}}\n"
PNG = base64.b64encode(b"a picture").decode()
SUMMARY = """\
ipc,method,iterations,accuracy
1,random,0,0.9
1,idc,20,0.7
1,dream,20,0.8
"""


def executed(title, answer):
    """A notebook as the launcher leaves it: a title, the answer, its picture, a section with a link."""
    outputs = [
        nbformat.v4.new_output("display_data", {"text/markdown": answer, "text/plain": "…"}),
        nbformat.v4.new_output("display_data", {"image/png": PNG, "text/plain": "…"}),
    ]
    cells = [
        nbformat.v4.new_markdown_cell(f"# {title}"),
        nbformat.v4.new_code_cell("secret = 1", outputs=outputs),
        nbformat.v4.new_markdown_cell("## What is compared\n\nSee [results](04_figures.ipynb), where $x$ is."),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def project(tmp_path):
    """Reports of two distillations and of the results, with params.yaml for one of the two."""
    (tmp_path / "params.yaml").write_text(PARAMS.format("dream"))
    (tmp_path / "methods.yaml").write_text(METHODS)
    (tmp_path / "reports" / "02_distillation").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    for name in ("02_distillation/dream-ipc1-seed0", "02_distillation/idc-ipc1-seed0", "04_figures"):
        nbformat.write(executed(f"Is {name} good?", f"Yes: *{name}*."), tmp_path / "reports" / f"{name}.ipynb")
    return tmp_path


def test_formulas_become_mathml_and_code_keeps_its_dollars():
    text = with_mathml("costs `$5$`, where $\\theta$ and $$a_1 + b$$")
    assert "`$5$`" in text
    assert text.count("<math") == 2


def test_every_formula_of_the_notebooks_is_rendered():
    for path in (find_root(Path(__file__).parent) / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                assert "\\" not in with_mathml(cell.source), f"{path.name} has a TeX command that MathML lacks"


def test_html_without_reports_names_the_command_to_run(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS.format("dream"))
    (tmp_path / "methods.yaml").write_text(METHODS)
    (tmp_path / "reports").mkdir()
    with pytest.raises(FileNotFoundError, match="make repro"):
        write_report(tmp_path)


def test_the_command_writes_the_front_page(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["html"]) == 0
    assert "reports/html/index.html" in capsys.readouterr().out


def test_pages_of_settings_that_are_not_listed_stand_apart(project):
    index = write_report(project).read_text()
    apart = index.index("no longer lists")
    assert index.index('href="02_distillation/dream-ipc1') < apart < index.rindex('href="02_distillation/idc-ipc1')
    (project / "params.yaml").write_text(PARAMS.format("dream, idc"))
    assert "no longer lists" not in write_report(project).read_text()


def test_pages_of_judged_sets_have_a_section_of_their_own(project):
    (project / "reports" / "judged").mkdir()
    nbformat.write(executed("How good?", "Good."), project / "reports" / "judged" / "mine-dc.ipynb")
    index = write_report(project).read_text()
    assert index.index("Judged sets") < index.index('href="judged/mine-dc.html"') < index.index("no longer lists")


def test_every_link_of_every_page_leads_somewhere(project):
    (project / "results" / "summary.csv").write_text(SUMMARY)
    out = write_report(project).parent
    pages = list(out.rglob("*.html"))
    assert len(pages) == 4
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"#:]+)"', page.read_text()):
            if target != "04_figures.html" or page.parent == out:  # the link of the text, beside notebook 04
                assert (page.parent / target).is_file(), f"{page.name}: {target}"
        assert page.name == "index.html" or "index.html" in page.read_text()


def test_a_page_shows_its_contents_and_neighbours_and_no_code(project):
    (project / "params.yaml").write_text(PARAMS.format("idc, dream"))
    page = (write_report(project).parent / "02_distillation" / "dream-ipc1-seed0.html").read_text()
    assert "secret" not in page and "<math" in page
    assert '<a href="#What-is-compared">What is compared</a>' in page
    assert "← 02_distillation/idc-ipc1-seed0" in page and "Is 04_figures good? →" in page, "in the order of params.yaml"


def test_the_front_page_is_read_from_results(project):
    assert "before and after" not in write_report(project).read_text(), "no results: no section"
    (project / "results" / "claims").mkdir()
    (project / "results" / "summary.csv").write_text(SUMMARY)
    (project / "results" / "summary.md").write_text("| method | accuracy |\n|---|---|\n| dream | 80.0 ± 1.0 |\n")
    (project / "results" / "claims" / "verdicts.md").write_text("It is faster: **holds**")
    index = write_report(project)
    text = index.read_text()
    result, images, claims = (text.index(f'<h2 id="{name}') for name in ("the-result", "the-images", "dreams-claims"))
    assert result < text.index("Yes: <em>04_figures</em>") < text.index("80.0&nbsp;±&nbsp;1.0</td>") < images
    assert images < text.index("02_distillation/dream-ipc1-seed0.png") < claims < text.index("<strong>holds</strong>")
    assert "idc-ipc1" not in text[images:claims] and "random" not in text[images:claims], "the best distilled set alone"
    assert (index.parent / "04_figures.png").read_bytes() == b"a picture"


def test_contact_sheet_png_holds_every_canvas_enlarged(tmp_path):
    canvases = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    figures.write_contact_sheet(canvases, 3, tmp_path / "sheet.png", scale=2)
    picture = Image.open(tmp_path / "sheet.png").convert("L")
    # 3 rows of 2 canvases, 8 pixels and 1 of border each, doubled
    assert picture.size == (2 * (2 * 9 + 1), 2 * (3 * 9 + 1))
    assert picture.getpixel((10, 10)) == 0
    assert picture.getpixel((10 + 18, 10 + 36)) == 255


def test_contact_sheet_png_of_one_canvas_a_class_is_one_row(tmp_path):
    figures.write_contact_sheet(torch.rand(10, 3, 8, 8), 10, tmp_path / "sheet.png", scale=1)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (10 * 9 + 1, 9 + 1)
