"""A project on images of one's own: what `make data` tells DVC to watch, and what it says when there are too few."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from dreamlib.errors import ParameterError
from pipeline.fetch_data import main, watch_images
from pipeline.project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose data set is a folder of two classes: four and five training images, one test image each."""
    root = tmp_path / "project"
    for label, count in (("apples", 5), ("pears", 4)):
        for split, rows in (("train", range(count)), ("test", [0])):
            (root / "my images (1)" / split / label).mkdir(parents=True)
            for row in rows:
                Image.new("L", (8, 8), row).save(root / "my images (1)" / split / label / f"{row}.png")
    (root / "methods.yaml").write_text("{}\n")
    monkeypatch.chdir(root)

    def write(ipc="[1]", held_out=0, method="{whole: {factor: 1}, cut: {factor: 2}}", path="my images (1)"):
        methods = list(YAML(typ="safe").load(method))
        (root / "params.yaml").write_text(
            f"dataset: folder\ndata: {{options: {{path: {path}, size: 8, channels: 1}}}}\nipc: {ipc}\nseeds: [0]\n"
            f"methods: {methods}\nmethod: {method}\nbudget: b\nbudgets: {{b: {{validation_per_class: {held_out}}}}}\n"
        )
        return root

    return write


def stage(root):
    return YAML(typ="safe").load(root / "data" / "dvc.yaml")["stages"]["images"]


def test_the_images_become_the_dependency_of_a_stage_that_lists_them(project, tmp_path):
    root = project()
    assert main(["digits"]) == 0
    assert not (root / "data" / "dvc.yaml").exists()
    assert main([]) == 0
    written = stage(root)
    assert written["deps"] == ["my images (1)"] and written["wdir"] == ".."
    assert written["cmd"] == "python -m pipeline.fetch_data folder"
    assert written["outs"] == [{"data/folder/images.md5": {"cache": False, "persist": True}}]
    assert (root / "data" / "folder" / "images.md5").is_file()
    (root / "my images (1)").rename(tmp_path / "elsewhere")
    project(path="../elsewhere")
    assert main(["folder"]) == 0
    assert stage(root)["deps"] == [str(tmp_path / "elsewhere")]


def test_no_stage_watches_what_dvc_sees_or_cannot_see(tmp_path, caplog):
    root = tmp_path / "project"
    watch_images(root / "data" / "folder", root / "data", root)  # the folder that every stage depends on
    assert caplog.messages == []
    watch_images(root / "images", tmp_path / "data", root)
    assert "is outside the project: run `make data` after every change" in caplog.messages[0]
    assert not list(tmp_path.rglob("dvc.yaml"))


def test_git_ignores_the_data_and_not_the_stage(tmp_path):
    """DVC looks for stages in no folder that `git check-ignore` matches with a slash behind its name."""
    shutil.copy(Path(__file__).parents[1] / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "data" / "folder").mkdir(parents=True)
    command = ["git", "check-ignore", "data/", "data/dvc.yaml", "data/dvc.lock", "data/folder/images.md5"]
    ignored = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert ignored.splitlines() == ["data/folder/images.md5"]


TOO_FEW = [  # of class pears, which has four
    ({"ipc": "[1, 2]"}, r"1 of 4 settings \(cut at ipc 2 needs 8\): choose ipc ≤ 1, which fits every method, or add"),
    ({"held_out": 1}, r"1 of 2 settings \(cut at ipc 1 needs 4\): set validation_per_class to at most 0, or add"),
    (
        {"ipc": "[1, 2]", "held_out": 500},
        r"4 of 4 settings \(whole at ipc 1 needs 1, cut at ipc 1 needs 4, whole at ipc 2 needs 2, cut at ipc 2 needs "
        r"8\): choose ipc ≤ 1 and set validation_per_class to at most 0, or add",
    ),
    (
        {"ipc": "[3]", "held_out": 2, "method": "{whole: {factor: 1}}"},
        r"1 of 1 settings \(whole at ipc 3 needs 3\): choose ipc ≤ 2, which fits every method or set "
        "validation_per_class to at most 1, or add",
    ),
    ({"method": "{cut: {factor: 3}}"}, r"\(cut at ipc 1 needs 9\): choose a smaller factor, or add images"),
    ({"method": "{cut: {factor: {1: 1, 2: 2}}}", "ipc": "[3]"}, "choose ipc ≤ 1, which"),
    ({"held_out": 4, "method": "{n: {init: noise}}"}, r"\(n at ipc 1 needs 1\): set validation_per_class to at most 3"),
    ({"ipc": "[5, 6, 7, 8]"}, r"cut at ipc 7 needs 28 and 2 more\)"),
]


@pytest.mark.parametrize(("values", "message"), TOO_FEW)
def test_too_few_images_are_refused_for_all_settings_at_once(project, values, message, capsys):
    root = project(**values)
    with pytest.raises(ParameterError, match=f"class 'pears' of folder has 4 training images.*too few for .*{message}"):
        Project.open(root)
    assert main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("folder: params.yaml: class 'pears' of folder has 4 training images, less ")


def test_enough_images_pass(project):
    project(ipc="[4]", method="{whole: {factor: 1}, any: {init: noise, factor: 2}}")
    assert main([]) == 0
    project(ipc="[1]", held_out=3, method="{whole: {factor: 1}}")
    assert main([]) == 0
