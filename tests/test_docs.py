"""README.md and docs/: generated blocks against the results, links against the files; the README's example runs."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dreamlib
from dreamlib.data import create
from dreamlib.synthetic.export import WRITERS
from dreamlib.synthetic.initial import fill, random_rows
from pipeline.pages import BLOCKS, page_text
from pipeline.report import parameters_page, results_page

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", BLOCKS)
def test_generated_blocks_are_up_to_date(page, committed):
    """Compared with the committed results, or with the results at hand: a run of one's own does not fail the tests."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page_text(page, text, committed) != text:
        assert page_text(page, text, ROOT) == text, "run `python -m pipeline.pages`"


def test_the_picture_shows_the_snapshots(committed):
    shown = np.asarray(Image.open(ROOT / results_page.PICTURE))
    assert any(np.array_equal(shown, results_page.before_and_after(root)) for root in (committed, ROOT))


def test_a_missing_marker_names_page_and_block():
    with pytest.raises(ValueError, match=r"README\.md, block 'times'.*exactly once"):
        page_text("README.md", "nothing", ROOT)


def test_claims_are_listed_by_verdict_and_none_is_lost(tmp_path):
    rows = (
        "| a | 1 | **holds** |\n| b | 2 | **not seen at this budget** |\n| c | 3 | **holds** |\n| d | 4 | **new** |\n"
    )
    (tmp_path / "results" / "claims").mkdir(parents=True)
    (tmp_path / "results" / "claims" / "verdicts.md").write_text(f"Text.\n\n| claim | m | v |\n|---|---|---|\n{rows}")
    assert results_page.claim_lists(tmp_path) == (
        "**Holds** (2 of 4):\n- a\n- c\n\n**Not seen at this budget** (1 of 4):\n- b\n\n**New** (1 of 4):\n- d\n"
    )


def test_every_parameter_is_explained():
    for model in parameters_page.SECTIONS.values():
        assert parameters_page.meanings_of(model).keys() == model.model_fields.keys()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [_anchor(each) for each in headings], f"{page}: {link}"


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_ways_to_use_a_set_run(committed, tmp_path, monkeypatch):
    """Those whose libraries are here: PyTorch, and scikit-learn from the arrays."""
    text = (ROOT / "docs" / "sets.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"\*\*([\w-]+)\*\*\n\n```python\n(.*?)```", text, flags=re.DOTALL))
    assert list(blocks) == ["PyTorch", "timm", "scikit-learn", "Keras", "JAX"]
    scope = {}
    monkeypatch.chdir(committed)
    exec(blocks["PyTorch"], scope)
    assert scope["images"].shape[1:] == (1, 28, 28) and len(scope["data"]) == 400
    dreamlib.export_set(scope["data"].set, tmp_path / "set.npz", "npz")
    monkeypatch.chdir(tmp_path)
    exec(blocks["scikit-learn"], scope)
    assert scope["classifier"].score(scope["images"].reshape(400, -1), scope["labels"]) > 0.9


def test_the_example_of_an_evaluation_runs(digits, tmp_path, monkeypatch):
    """On the digits, whose test images are always here: a set of real images beats guessing by far."""
    text = (ROOT / "docs" / "sets.md").read_text(encoding="utf-8")
    example = re.search(r"## Measure a set's accuracy\n.*?```python\n(.*?)```", text, flags=re.DOTALL)[1]
    for published, here in {"fashion_mnist": "digits", "results/sets/dream-ipc10-seed0": "set"}.items():
        assert published in example
        example = example.replace(published, here)
    monkeypatch.chdir(tmp_path)
    create("digits").fetch(tmp_path / "data")
    fill(digits, random_rows(digits, 10, seed=0), ipc=10, factor=1, rule="single").save(tmp_path / "set.safetensors")
    scope = {}
    exec(example, scope)
    assert scope["result"].split == "test" and scope["result"].mean > 0.5


def test_every_argument_and_format_of_an_import_is_in_the_page():
    text = (ROOT / "docs" / "sets.md").read_text(encoding="utf-8")
    arguments = list(inspect.signature(dreamlib.import_set).parameters)[1:]
    for word in [*arguments, *WRITERS, "dc", "mtt", "datm", "idc", "rfad", "folder", "arrays"]:
        assert f"`{word}`" in text, word


def test_the_readme_is_short_and_its_example_runs(committed, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    monkeypatch.chdir(committed)
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], scope)
    assert len(scope["data"]) == 400 and scope["images"].shape[1:] == (1, 28, 28)
