"""Tables and sentences of the notebooks: what makes a method, and how the version of the data is fixed."""

import re
from pathlib import Path

import pytest

from dreamlib.data import DATASETS
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


def project_with(root, dataset, folder=None):
    """A project on a data set; ``folder`` has the images of the data set 'folder'."""
    params = read_params(ROOT)
    options = {"path": str(folder), "size": 8, "channels": 1} if dataset == "folder" else {}
    data = params.data.model_copy(update={"options": options})
    return Project(root, params.model_copy(update={"dataset": dataset, "data": data}))


@pytest.mark.parametrize("dataset", DATASETS.names())
def test_every_data_sets_version_is_where_it_is_said_to_be(tmp_path, dataset):
    """As this repository pins it: a .dvc file says so only of the folders that it lists itself."""
    files = [file for file in ROOT.glob("*.dvc") if file.is_file()]
    pinned = [file.name for file in files if re.search(rf"path: data/{dataset}$", file.read_text(), re.MULTILINE)]
    told = data_version(project_with(ROOT, dataset, tmp_path))
    if pinned:
        assert told == f"pinned by {pinned[0]}"
    elif dataset == "folder":
        assert told == "not pinned: dvc.lock records data/folder as the stage read it"
    else:
        assert told.startswith("published files with known MD5s, from ")
    assert (dataset == "fashion_mnist") == (pinned == ["data.dvc"])


@pytest.mark.parametrize("place", ["more.dvc", "data/digits.dvc"])
def test_a_data_set_may_have_a_dvc_file_of_its_own(tmp_path, place):
    (tmp_path / "data").mkdir()
    (tmp_path / ".dvc").mkdir()  # DVC's own folder, no such file
    (tmp_path / "data.dvc").write_text("outs:\n- path: data/fashion_mnist\n")
    (tmp_path / place).write_text(f"outs:\n- md5: 0\n  path: {'data/' if place == 'more.dvc' else ''}digits\n")
    assert data_version(project_with(tmp_path, "digits")) == f"pinned by {place}"
    assert data_version(project_with(tmp_path, "fashion_mnist")) == "pinned by data.dvc"
    assert data_version(project_with(tmp_path, "mnist")).startswith("published files with known MD5s")


def test_a_study_without_a_record_has_no_cost():
    assert study_costs({}) == "The cost of this run was not recorded."
