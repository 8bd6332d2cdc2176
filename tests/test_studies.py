"""Studies under parameters of their own, and a method that is one file: through the pipeline's stages, on digits."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dreamlib import study
from dreamlib.datasets import create
from dreamlib.files import read_json
from dreamlib.objectives import OBJECTIVES
from dreamlib.params import ParameterError, find_root, read_params
from dreamlib.project import Project, Setting
from dreamlib.stage_distillation import run_distillation
from dreamlib.stage_evaluation import run_evaluation
from dreamlib.synthetic import SyntheticSet

ROOT = find_root(Path(__file__).parent)
TINY = {
    "dataset": "digits",
    "network": {"name": "convnet", "options": {"width": 8}},
    "ipc": [1],
    "methods": ["random", "dream", "kmeans_kd"],
    "seeds": [0, 1],
    "budget": "tiny",
    "compute": {"compile": False, "precision": "float32", "threads": 1},
    "data": {"validation_per_class": 20},
    "method": {"kmeans_kd": {"teacher_epochs": 1}},
    "budgets": {
        "tiny": {
            "clustering": {"features": "random", "pool": 40},
            "distillation": {
                "outer_iterations": 1, "inner_iterations": 2, "real_batch": 8, "pool": 40, "image_optimizer": "adam",
                "image_lr": 0.05, "network_steps": 1,
            },
            "evaluation": {
                "networks": ["convnet", "mlp"], "repeats": 1, "epochs": 3, "curve_networks": 0,
                "views": ["plain", "hard_labels"],
            },
            "experts": {"images": 10, "count": 1, "epochs": 1, "batch": 32},
        }
    },
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with one tiny study, as the current directory."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "dreamlib", tmp_path / "dreamlib", ignore=shutil.ignore_patterns("__pycache__"))
    YAML().dump({"studies": {"tiny": TINY}}, tmp_path / "studies.yaml")
    create("digits").fetch(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_joins_sections_and_replaces_the_rest(root):
    params, usual = read_params(root, "tiny"), read_params(root)
    assert (params.dataset, params.seeds, params.compute.threads) == ("digits", [0, 1], 1)
    assert params.data.directory == usual.data.directory  # not named by the study
    assert params.method["dream"] == usual.method["dream"]
    assert params.method["kmeans_kd"] == usual.method["kmeans_kd"] | {"teacher_epochs": 1}
    assert set(params.budgets) == {*usual.budgets, "tiny"} and usual.dataset == "fashion_mnist"


def test_an_unknown_study_and_a_missing_file_are_said(root):
    with pytest.raises(ParameterError, match="did you mean 'tiny'"):
        read_params(root, "tinny")
    (root / "studies.yaml").unlink()
    with pytest.raises(ParameterError, match=r"studies.yaml is missing; restore it with `git checkout studies.yaml`"):
        read_params(root, "tiny")


def test_a_study_keeps_its_results_apart(root):
    usual, tiny = Project(root, read_params(root)), Project(root, read_params(root, "tiny"), "tiny")
    setting = Setting("dream", 1, 0)
    assert usual.file("sets", setting, ".x") == root / "results" / "sets" / "dream-ipc1-seed0.x"
    assert tiny.file("sets", setting, ".x") == root / "results" / "tiny" / "dream" / "sets" / "dream-ipc1-seed0.x"


def test_a_study_runs_every_seed_and_the_first_meets_every_network(root):
    def run():
        for method in TINY["methods"]:
            assert study.main(["tiny", "run", method]) == 0
        return {p.name: p.read_bytes() for p in (root / "results" / "tiny").rglob("*") if p.is_file()}

    assert study.main(["tiny", "clusters"]) == 0
    first = run()
    assert not (root / "results" / "sets").exists()
    asked = [
        [(v["network"], v["view"]) for v in read_json(path)["views"]]
        for path in sorted((root / "results" / "tiny" / "dream" / "evaluation").iterdir())
    ]
    views = [("convnet", "plain"), ("convnet", "hard_labels")]
    assert asked == [
        [("convnet", "protocol"), ("mlp", "protocol"), *views],
        [("convnet", "protocol"), *views],
    ]
    second = read_json(root / "results" / "tiny" / "dream" / "evaluation" / "dream-ipc1-seed1.json")
    by_view = {view["view"]: view["accuracies"] for view in second["views"]}
    assert by_view["hard_labels"] == by_view["protocol"] != by_view["plain"]
    soft = read_json(root / "results/tiny/kmeans_kd/evaluation/kmeans_kd-ipc1-seed0.json")
    assert soft["label_kind"] == "soft" and soft["stored_floats"] > 640
    assert run() == first, "the same parameters give the same bits"
    assert sorted(p.stem for p in (root / ".dream" / "runs" / "tiny").glob("distillation-dream*")) == [
        "distillation-dream-ipc1-seed0", "distillation-dream-ipc1-seed1",
    ]  # fmt: skip


def test_an_unlisted_method_is_refused_before_any_work(root, capsys):
    assert study.main(["tiny", "run", "idc"]) == 1
    assert "lists ['random', 'dream', 'kmeans_kd']" in capsys.readouterr().err
    assert not (root / "results" / "tiny").exists()


TOY = '''
"""Mean-pixel matching: a whole method in one file."""

from dataclasses import dataclass

from dreamlib.objectives import OBJECTIVES, Objective


@OBJECTIVES.register("mean_pixels")
@dataclass(frozen=True)
class MeanPixels(Objective):
    weight: float = 1.0

    def losses(self, state):
        for label in range(state.info.num_classes):
            gap = state.synthetic_images(label).mean(0) - state.real_images(label).mean(0)
            yield label, self.weight * gap.square().sum()
'''


def test_a_new_method_is_one_module_and_an_entry_in_params(root):
    """Registered from a module of its own, distilled and evaluated by the pipeline's stages."""
    (root / "toy.py").write_text(TOY)
    spec = importlib.util.spec_from_file_location("toy_objective", root / "toy.py")
    sys.modules["toy_objective"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yaml = YAML()
        values = yaml.load(root / "params.yaml")
        values.update({k: v for k, v in TINY.items() if k not in ("methods", "method", "budgets")}, methods=["toy"])
        toy = {"objective": "mean_pixels", "options": {"weight": 2.0}, "init": "noise", "factor": 1}
        values["method"]["toy"] = toy | {"outer_iterations": 40, "inner_iterations": 1, "train_on": "none"}
        values["budgets"]["tiny"] = TINY["budgets"]["tiny"]
        values["seeds"], values["compute"]["device"] = [0], "cpu"
        yaml.dump(values, root / "params.yaml")
        project, setting = Project.open(root), Setting("toy", 1, 0)
        history = run_distillation(project, setting).history
        assert history[-1][1] < history[0][1] / 4
        done, _ = run_evaluation(project, setting)
        assert read_json(root / "results" / "evaluation" / "toy-ipc1-seed0.json")["accuracy"] == done.mean
        # What it must have become: each class's mean image.
        made = SyntheticSet.open(root / "results" / "sets" / "toy-ipc1-seed0.safetensors").canvases
        train = project.split("train")
        means = [train.images[train.of_class(c)].mean(0) for c in range(10)]
        assert max(float((a - b).abs().mean()) for a, b in zip(made, means, strict=True)) < 0.15
    finally:
        OBJECTIVES.remove("mean_pixels")
        sys.modules.pop("toy_objective", None)
