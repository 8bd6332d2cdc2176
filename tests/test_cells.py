"""Tables and sentences of the notebooks: what makes a method, and how the version of the data is fixed."""

from pathlib import Path

import pytest

from pipeline.params import find_root, read_params
from pipeline.project import Project
from pipeline.report.cells import data_version, folded, method_settings, study_costs

ROOT = find_root(Path(__file__).parent)


def test_a_method_is_shown_by_what_it_sets_beside_the_budgets_defaults():
    own, shared = method_settings(read_params(ROOT), "dream", 1)
    assert own.to_dict("index") == {
        "init": {"dream": "kmeans", "budget's default": "random"},
        "sampler": {"dream": "representative", "budget's default": "random"},
    }
    assert shared.loc["real_batch", "dream"] == "32" and len(shared) > 30
    named, _ = method_settings(read_params(ROOT), "idc", 1)
    assert list(named.index) == ["init", "sampler"], "set, though equal to the defaults"


def test_a_methods_own_block_for_the_budget_makes_it_too():
    own, _ = method_settings(read_params(ROOT), "dc", 1)
    assert own.loc["image_lr"].to_dict() == {"dc": "0.14", "budget's default": "0.05"}
    assert own.loc["options", "dc"] == "distance: cosine, layers: conv_linear"


def test_folded_settings_can_be_opened():
    _, shared = method_settings(read_params(ROOT), "dream", 1)
    text = folded(shared, "The rest")
    assert text.startswith("<details><summary>The rest</summary><table") and text.endswith("</details>")


@pytest.mark.parametrize(
    ("dataset", "pin", "expected"),
    [
        ("fashion_mnist", "data/fashion_mnist", "pinned by data.dvc"),
        ("digits", "data/fashion_mnist", "published files with known MD5s, from installed scikit-learn"),
        ("folder", "data/fashion_mnist", "not pinned"),
    ],
)
def test_the_version_of_the_data_is_told_as_it_is_fixed(tmp_path, dataset, pin, expected):
    (tmp_path / "data.dvc").write_text(f"outs:\n- path: {pin}\n")
    params = read_params(ROOT).model_copy(update={"dataset": dataset})
    if dataset == "folder":
        options = {"path": str(tmp_path), "size": 8, "channels": 1}
        params = params.model_copy(update={"data": params.data.model_copy(update={"options": options})})
    assert data_version(Project(tmp_path, params)).startswith(expected)


def test_a_study_without_a_record_has_no_cost():
    assert study_costs({}) == "The cost of this run is not on record."
