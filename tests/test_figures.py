"""Figures and tables with names of every kind, hundreds of classes, large images, and a single network or seed."""

import io
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.container import BarContainer
from matplotlib.text import Text
from PIL import Image

from dreamlib._engine.files import read_json
from dreamlib.evaluation import Evaluation
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.params import read_params
from pipeline.project import Project, Setting
from pipeline.report import cells, claims, figures, figures_claims, labels, statistics
from pipeline.report.tables import percent
from pipeline.stages import figures as stage
from pipeline.stages.clustering import coverage_table
from pipeline.studies.methods import plug_in_table

HOSTILE = ["$\\bad$", "$x_1$", "50%", "_hidden", "a $ b", "(no) [brackets]", "<b>&amp;", "\\$5", "^{", "ünïcödé"]
RARE = "\u1d81"  # in STIXGeneral, which comes with matplotlib, and not in DejaVu Sans
NOWHERE = "\u732b"  # in neither


@pytest.fixture(autouse=True)
def settings_restored():
    """Matplotlib's and pandas' settings as they were, whatever a test changes; the style of the report in between."""
    with mpl.rc_context(), pd.option_context("display.html.use_mathjax", True):
        figures.style()
        yield


@pytest.fixture
def fonts_of_matplotlib(monkeypatch):
    """No font but those that come with matplotlib."""
    bundled = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(mpl.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    labels._fallback_fonts.cache_clear()
    yield
    labels._fallback_fonts.cache_clear()


def png(figure):
    """The figure as a notebook shows it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def drawn(text, **how):
    """What matplotlib makes of a text."""
    figure = plt.figure(figsize=(3, 0.5))
    figure.text(0.1, 0.3, text, **how)
    plt.close(figure)
    return png(figure)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_drawn_as_it_is(name):
    assert drawn(labels.literal(name)) == drawn(name, parse_math=False)


IMAGES = torch.rand(len(HOSTILE), 3, 8, 8)
ACCURACIES = pd.DataFrame({"method": HOSTILE, "ipc": 1, "accuracy": 0.5, "std": 0.1, "stored_floats": 10.0})
RANKED = ACCURACIES.assign(view="protocol", network="convnet", label_kind="hard")
COSTS = pd.concat([ACCURACIES.assign(data=ACCURACIES.method, operations=1.0)] * 2)  # lines, not single points
PICTURES = {
    "rows": lambda title: figures.image_rows(dict(zip(HOSTILE, IMAGES.unsqueeze(1), strict=True)), title),
    "captions": lambda title: figures.contact_sheet(IMAGES, HOSTILE, title),
    "sheet": lambda title: figures.contact_sheet(IMAGES.repeat_interleave(2, 0), HOSTILE, title),
    "scatter": lambda title: figures.scatter(np.eye(2), {title: np.array([0])}, np.zeros(2), title),
    "bars": lambda title: figures.bars(ACCURACIES, title),
    "ranking": lambda title: figures.ranking(RANKED, title),
    "storage": lambda title: figures.storage(ACCURACIES, title),
    "along": lambda _: figures_claims.accuracy_along(ACCURACIES.assign(iteration=1), "iteration", "iteration"),
    "gains": lambda _: figures_claims.paired_gains(pd.DataFrame([[0.1, 0.2]] * len(HOSTILE), index=HOSTILE), "gain"),
    "costs": lambda _: figures_claims.against_operations(COSTS),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_figure_takes_names_of_every_kind(kind):
    figure = PICTURES[kind](HOSTILE[0])
    png(figure)
    assert labels.literal(HOSTILE[0]) in texts(figure)
    if kind in ("bars", "storage", "along", "costs"):
        (legend,) = [axis.get_legend() for axis in figure.axes]
        assert [text.get_text() for text in legend.get_texts()] == [labels.literal(name) for name in HOSTILE]


def test_the_axis_of_powers_keeps_its_formulas():
    table = pd.DataFrame({"method": "a", "stored_floats": [10.0, 1e4], "accuracy": 0.5, "std": 0.1})
    figure = figures.storage(table)
    png(figure)
    assert any("10^{" in text for text in texts(figure))


def test_an_installed_font_writes_what_matplotlibs_own_does_not(fonts_of_matplotlib):
    before = list(mpl.rcParams["font.family"])
    assert labels.class_labels(["a", RARE]) == ["a", RARE]
    assert mpl.rcParams["font.family"] == [*before, "STIXGeneral"]
    png(figures.contact_sheet(torch.rand(2, 1, 8, 8), ["a", RARE]))  # a missing glyph would be a warning, thus an error
    assert labels.class_labels(["a", RARE]) == ["a", RARE] and len(mpl.rcParams["font.family"]) == len(before) + 1


def test_a_name_that_no_font_writes_is_a_number_and_said_in_words(fonts_of_matplotlib):
    classes = ["cat", NOWHERE, "a\nb", f"{RARE}{NOWHERE}"]
    assert labels.class_labels(classes) == ["cat", "class 1", "class 2", "class 3"]
    png(figures.contact_sheet(torch.rand(4, 1, 8, 8), classes))
    assert f"`class 1` is `{NOWHERE}`" in labels.names_note(classes)
    assert labels.names_note(["cat", "dog", "$x_1$"]) == ""


def test_whatever_fonts_there_are_nothing_warns():
    png(figures.contact_sheet(torch.rand(3, 1, 8, 8), [NOWHERE, "\U0001f600", "भारत"]))


def test_long_names_are_shortened_and_stay_apart():
    classes = [f"a name that is much too long for a figure, {n}" for n in range(2)] + ["x" * 18, "字" * 10]
    shown = labels.class_labels(classes)
    assert shown == ["a name that i… (0)", "a name that i… (1)", "x" * 18, "字" * 6 + "… (3)"] or shown[3] == "class 3"
    assert f"`{shown[1]}` is `{classes[1]}`" in labels.names_note(classes)


def test_wide_names_take_no_room_from_the_images():
    """Eighteen capital Ws are wider than a figure of two columns would be without them."""
    figure = figures.contact_sheet(torch.rand(6, 1, 8, 8), ["W" * 18, "b", "c"])
    png(figure)
    assert figure.axes[0].get_window_extent().width / figure.dpi > 2 * 0.62


def test_many_methods_fit_the_legend_below_their_bars():
    names = [f"a_method_with_a_name_{number}" for number in range(9)]
    figure = figures.bars(pd.DataFrame({"method": names, "ipc": 1, "accuracy": 0.5, "std": 0.1}))
    png(figure)
    assert figure.axes[0].get_legend().get_window_extent().width < figure.get_figwidth() * figure.dpi


def test_tables_and_sentences_hold_names_as_they_are():
    names = [*HOSTILE, "back`tick"]
    coverage = pd.DataFrame({"class": names, "batch": "random", "clusters_hit": 0.5, "nearest_distance": 1.0})
    html = cells.coverage_by_class(coverage)._repr_html_()
    assert "tex2jax_ignore" in html and "$x_1$" in html and "&lt;b&gt;&amp;amp;" in html
    assert labels.code_span("back`tick") == "``back`tick``"


# ---- many classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [200, 1000])
@pytest.mark.parametrize("ipc", [1, 3])
def test_a_sheet_of_many_classes_shows_forty_and_says_so(count, ipc):
    classes = [f"n{number:08d}" for number in range(count)]
    figure = figures.contact_sheet(torch.rand(count * ipc, 3, 8, 8), classes, "stored canvases")
    shown = texts(figure)
    assert f"stored canvases\n(40 of {count:,} classes shown)" in shown
    assert {text for text in shown if text.startswith("n")} == set(classes[:40])
    with Image.open(io.BytesIO(png(figure))) as picture:
        assert max(picture.size) <= 110 * 20


def test_images_of_classes_that_are_not_shown_are_not_made():
    made = []

    def images():
        for label in range(1000):
            made.append(label)
            yield torch.rand(2, 1, 4, 4)

    figures.class_sheet(images(), [str(label) for label in range(1000)])
    assert made == list(range(40))


def test_rows_of_images_of_several_sizes_are_drawn_whole():
    small, large = torch.zeros(2, 1, 28, 28), torch.full((1, 1, 30, 30), 0.5)
    (sheet,) = figures.image_rows({"small": small, "large": large}).axes[0].get_images()
    pixels = sheet.get_array()
    assert pixels.shape == (2 * 30 + 2, 2 * 30 + 2, 3)
    assert (pixels == 0).all(axis=2).sum() == 2 * 28 * 28 and (pixels == 0.5).all(axis=2).sum() == 30 * 30


def test_rows_of_many_columns_show_sixteen():
    figure = figures.image_rows({"start": torch.rand(1000, 1, 8, 8), "end": torch.rand(1000, 1, 8, 8)}, "first")
    assert "first\n(16 of 1,000 columns shown)" in texts(figure)


@pytest.mark.parametrize(("ipc", "size"), [(1, 16), (50, 32), (10, 224)])
def test_the_png_of_a_large_set_is_bounded(tmp_path, ipc, size):
    canvases = torch.rand(1, 1, 1, 1).expand(1000 * ipc, 3, size, size)
    path = tmp_path / "a folder (with brackets)" / "sheet, 1.png"
    figures.write_contact_sheet(canvases, 1000, path)
    with Image.open(path) as picture:
        assert max(picture.size) <= 3000 and min(picture.size) >= size


def test_large_images_are_reduced_to_what_is_drawn():
    """The noisiest images, 224 pixels wide: 40 rows of 6, 38 pixels each, have a megabyte of three channels."""
    noise = torch.rand(1, 3, 224, 224).expand(200 * 6, 3, 224, 224)
    picture = png(figures.contact_sheet(noise, [str(label) for label in range(200)]))
    assert len(picture) < 1.2e6
    mean = torch.linspace(0, 1, 4).view(1, 1, 1, 4).repeat_interleave(64, 3).expand(1, 1, 256, 256)
    reduced = figures._reduced(mean, 8 / 110)  # to 8 pixels: the mean over blocks of 32
    torch.testing.assert_close(reduced[0, 0, 0], torch.linspace(0, 1, 4).repeat_interleave(2))


def test_the_table_of_a_thousand_classes_has_forty_rows_and_says_so():
    names = [f"class name {number}" for number in range(1000)]
    rows = [(name, kind, 8, 0.5, 1.0) for name in names for kind in ("representative", "random")]
    table = cells.coverage_by_class(pd.DataFrame(rows, columns=coverage_table([], [], 1, 0).columns))
    assert list(table.index) == names[:40] and table.index.name == "class (40 of 1,000 classes shown)"
    assert len(table._repr_html_()) < 20_000


@pytest.mark.parametrize("ipc", [1, 2])
def test_bytes_are_drawn_as_the_floats_they_stand_for(ipc):
    """Larger than a cell, so that they are reduced."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(ipc * 2, 1, 16, 16)
    drawn = [png(figures.contact_sheet(each, ["a", "b"])) for each in (images, images.float() / 255)]
    assert drawn[0] == drawn[1]


def test_names_are_listed_up_to_forty(fonts_of_matplotlib):
    note = labels.names_note([f"{NOWHERE}{number}" for number in range(1000)])
    assert note.count(" is `") == 40 and "(40 of 1,000 such names shown)" in note


# ---- one network, one seed ----------------------------------------------------------------------------------------


def rows_of(accuracies):
    fixed = {"factor": 1, "iteration": 0, "training_images": 10, "stored_floats": 7840, "label_kind": "hard"}
    fixed |= {"protocol": "idc", "epochs": 9, "split": "test", "view": "protocol", "matched": True}
    rows = [fixed | {"ipc": ipc, "method": method, "seed": 0, "accuracy": a} for (method, ipc), a in accuracies]
    return pd.DataFrame(rows)


def test_one_network_has_no_spread_anywhere(tmp_path, monkeypatch):
    rows = rows_of([(("random", 1), 0.5), (("dream", 1), 0.75)])
    table = stage.summary(rows)
    assert table["std"].isna().all()
    assert "| 1 | dream | 75.0 (n = 1) | 1 × 1 |" in stage.summary_markdown(table)
    assert "no spread" in stage.spread_in_words(table)
    figure = figures.bars(table)
    assert len(figure.axes[0].containers) == 2, "two bars and nothing on them"
    assert {"50.0", "75.0"} <= set(texts(figure))
    project = Project(tmp_path, read_params())
    assert "dream 75.0 (n = 1)" in stage.headline(project, table) and "±" not in stage.headline(project, table)
    assert [line.has_yerr for line in figures.storage(table).axes[0].containers] == [False, False]
    monkeypatch.setattr(stage, "evaluations", lambda _: rows)
    stage.write_summary(project)
    assert read_json(tmp_path / "results" / "summary.json")["ipc1"]["dream"] == {"accuracy": 0.75}


def test_a_bar_of_several_networks_keeps_its_whisker_beside_one_without():
    table = stage.summary(rows_of([(("a", 1), 0.5), (("a", 1), 0.6), (("a", 10), 0.7)]))
    bars = [container for container in figures.bars(table).axes[0].containers if isinstance(container, BarContainer)]
    assert [bar.errorbar is None for bar in bars] == [False, True]
    assert "mean ± std" in stage.spread_in_words(table) and "no whisker" in stage.spread_in_words(table)


def test_the_sentence_of_an_evaluation_has_a_spread_where_there_is_one():
    synthetic = SyntheticSet(torch.zeros(2, 1, 4, 4), torch.arange(2), 2)
    several, one = (Evaluation(values, "test", 9) for values in ((0.5, 0.7), (0.5,)))
    answers = [cells.evaluation_answer(Setting("m", 1, 0), each, synthetic, "toy") for each in (several, one)]
    assert answers[0] == (
        "**m-ipc1-seed0: 60.0 ± 14.1 % test accuracy** on toy, mean ± standard deviation over 2 networks with "
        "different initial weights, after the last of 9 epochs. The set stores 32 numbers."
    )
    assert "±" not in answers[1] and "one network shows no spread" in answers[1]


def test_one_seed_has_no_spread_in_gains_and_claims(tmp_path, monkeypatch):
    assert percent(0.5, math.nan) == "50.0 (n = 1)"
    assert statistics.in_points([0.01]) == "+1.0 points (n = 1)"
    accuracies = pd.DataFrame({"dc": [0.5], "dc_dream": [0.6]})
    monkeypatch.setattr("pipeline.studies.methods.read_results", lambda _: None)
    monkeypatch.setattr("pipeline.studies.methods.by_seed", lambda *_: accuracies)
    params = read_params().model_copy(update={"methods": ["dc", "dc_dream"]})
    (row,) = plug_in_table(Project(tmp_path, params)).to_dict("records")
    assert row["without"] == "50.0 (n = 1)" and row["gain in points (paired by seed)"] == "+10.0 (n = 1)"
    monkeypatch.setattr(claims, "batches_by_seed", lambda _: {"norm": pd.DataFrame({"a": [1.0], "b": [2.0]})})
    part = {"name": "norm", "measure": "norm", "of": "a", "than": "b", "expected": "smaller"}
    assert claims.batch_measure(None, 0.0, [part])[0] == "norm: a 1.000 (n = 1), b 2.000 (n = 1)"


# ---- settings -----------------------------------------------------------------------------------------------------


def test_a_value_of_another_ipc_is_marked():
    params = read_params().model_copy(update={"budget": "paper", "dataset": "cifar10"})
    own, _ = cells.method_settings(params, "mtt", 5)
    assert own.loc["options", "mtt"].startswith("synthetic_steps: 50 (entry of ipc 1), expert_epochs: 2, ")
    assert own.loc["image_lr", "mtt"] == "100.0 (entry of ipc 1)"
    assert "entry of ipc" not in cells.method_settings(params, "mtt", 1)[0].to_string()
    assert cells.method_settings(params, "mtt", 10)[0].loc["image_lr", "mtt"] == "100.0 (entry of ipc 1)"


def test_so_is_one_of_the_budget_and_of_the_protocol():
    params = read_params()
    _, shared = cells.method_settings(params, "dream", 5)
    assert shared.loc["inner_iterations", "dream"] == "20 (entry of ipc 1)"
    protocol = cells.settings_table(params.evaluation("dream", 5), params.inherited_ipcs("evaluation", "dream", 5))
    assert protocol.loc["epochs", "value"] == "80 (entry of ipc 1)" and protocol.loc["repeats", "value"] == "2"
    assert params.inherited_ipcs("evaluation", "dream", 10) == {}
