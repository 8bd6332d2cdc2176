"""One file a new idea: the examples of docs/development.md, as one module, through the pipeline's stages on digits."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from dreamlib._engine.files import read_json
from dreamlib.data import DATASETS, create
from dreamlib.distill import Distiller
from dreamlib.matching import OBJECTIVES
from dreamlib.matching.label_sources import LABELS
from dreamlib.networks import NETWORKS
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.synthetic.initial import INITS
from pipeline.project import Project, Setting
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import run_distillation, starting_set
from pipeline.stages.evaluation import run_evaluation

ROOT = Path(__file__).parents[1]
LIBRARY, PAGE = ROOT / "dreamlib", (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
REGISTRIES = (DATASETS, NETWORKS, OBJECTIVES, SAMPLERS, INITS, LABELS)
SETTING = Setting("moments", 2, 0)
ITERATIONS, STOPPED_AT = 8, 3
PARAMS = {
    "dataset": "even_digits",
    "ipc": [SETTING.ipc],
    "methods": [SETTING.method],
    "seeds": [SETTING.seed],
    "budget": "tiny",
    "compute": {"device": "cpu", "threads": 1},
    "budgets": {
        "tiny": {
            "network": {"name": "shallow", "options": {"width": 8}},
            "validation_per_class": 10,
            "clustering": {"features": "random"},
            "distillation": {
                "outer_iterations": 2, "inner_iterations": ITERATIONS // 2, "real_batch": 16, "interval": 2,
                "image_optimizer": "adam", "image_lr": 0.05, "learned_lr": 0.01, "network_steps": 2,
                "network_batch": 32, "checkpoint_every_s": 1e-6,
            },
            "evaluation": {"networks": ["shallow", "mlp"], "repeats": 1, "epochs": 30, "curve_epochs": 2},
        }
    },
}  # fmt: skip


def blocks(language):
    """The page's code blocks in a language, one after the other."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def project(tmp_path, threads_restored):
    """A temporary project whose data set, network, objective, sampler, initialisation and labels are the page's."""
    before = [registry.names() for registry in REGISTRIES]
    path = tmp_path / "dreamlib" / "additions.py"
    path.parent.mkdir()
    path.write_text(blocks("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("additions", path)
    sys.modules["additions"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        (tmp_path / "methods.yaml").write_text(blocks("yaml"), encoding="utf-8")
        (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        YAML().dump(PARAMS, tmp_path / "params.yaml")
        create("even_digits").fetch(tmp_path / "data")
        yield Project.open(tmp_path)
    finally:
        sys.modules.pop("additions")
        for registry, names in zip(REGISTRIES, before, strict=True):
            for name in set(registry.names()) - set(names):
                registry.pop(name)


def test_one_of_each_goes_through_the_stages_and_resumes(project, monkeypatch, global_generators_untouched):
    assert [len(c) for c in run_clustering(project, SETTING.ipc, SETTING.seed).clusters.values()] == [5, 5]
    file, steps, step = project.file("sets", SETTING, ".safetensors"), [], Distiller.step

    def counted(run):
        if len(steps) == STOPPED_AT:
            steps.append("stopped")
            raise KeyboardInterrupt
        steps.append(run.iteration)
        step(run)

    whole = run_distillation(project, SETTING)
    written = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(Distiller, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(project, SETTING)
    assert not file.exists()
    resumed = run_distillation(project, SETTING)
    assert steps == [0, 1, 2, "stopped", *range(STOPPED_AT, ITERATIONS)], "it goes on from the checkpoint"
    assert file.read_bytes() == written and resumed.history == whole.history

    labels = torch.full((5, 5), 0.02).fill_diagonal_(0.92).repeat_interleave(SETTING.ipc * 4, 0)
    torch.testing.assert_close(whole.synthetic.soft_labels, labels)
    losses = [loss for _, loss in whole.history]
    assert len(losses) == ITERATIONS and losses[-1] < 0.8 * losses[ITERATIONS // 2], "on the second network"
    evaluation, curve = run_evaluation(project, SETTING)
    metrics = read_json(project.file("evaluation", SETTING, ".json"))
    assert [view["network"] for view in metrics["views"]] == ["shallow", "mlp"]
    assert metrics["accuracy"] == evaluation.mean > 0.3, "of five classes"
    assert metrics["label_kind"] == "soft"
    assert curve["iteration"].iloc[-1] == ITERATIONS


def test_each_of_them_is_what_ran(project, monkeypatch):
    """The data set, the start, the real batches, the network and what the objective learned are the additions'."""
    settings = project.params.distillation(SETTING.method, SETTING.ipc)
    settings = settings.model_copy(update={"outer_iterations": 1, "inner_iterations": 1})
    data, info = project.images_for_method(project.split("train"), settings)
    start = starting_set(project, SETTING, settings, data, info)
    objective, seen = OBJECTIVES["moments"], {}
    losses, finish = objective.losses, objective.finish

    def spied_losses(self, state):
        seen["network"], seen["rows"] = state.network, [state.sampler.rows(label, 0) for label in state.classes]
        return losses(self, state)

    def spied_finish(self, synthetic):
        seen["unfinished"] = synthetic
        return finish(self, synthetic)

    monkeypatch.setattr(objective, "losses", spied_losses)
    monkeypatch.setattr(objective, "finish", spied_finish)
    result = Distiller(start, data, info, settings, project.network, project.compute, SETTING.seed).run().synthetic

    assert (info.classes, data.num_classes) == (tuple("02468"), 5)
    assert isinstance(seen["network"].body[1], torch.nn.GELU)
    embed = project.embedder(SETTING.seed)
    for label in range(5):
        own = data.images[data.of_class(label)]
        nearest = own[(embed(own) - embed(own).mean(0)).square().sum(1).argmin()]
        shrunk = torch.nn.functional.avg_pool2d(nearest, 2)  # 4 × 4, the first of the four on the class's first canvas
        torch.testing.assert_close(start.canvases[start.rows_of_class(label)][0, :, :4, :4], shrunk)
        probability = seen["network"](info.normalise(own)).softmax(1)[:, label]  # not yet trained
        chosen = torch.isin(data.of_class(label), seen["rows"][label])
        assert int(chosen.sum()) == settings.real_batch
        assert probability[chosen].max() <= probability[~chosen].min()
    gain = seen["unfinished"].extras["gain"]
    assert gain.shape == (5,) and bool((gain != 1).all()) and result.extras == {}
    expected = gain.repeat_interleave(SETTING.ipc).view(-1, 1, 1, 1) * seen["unfinished"].canvases
    torch.testing.assert_close(result.canvases, expected.clamp(0, 1))


def test_a_file_in_its_package_is_found(tmp_path):
    """Each of the page's files where its first line says, in a copy of the library."""
    root = tmp_path / "dreamlib"
    shutil.copytree(LIBRARY, root, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(files) == 6
    for path, text in files:
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text, encoding="utf-8")
    asked = """
from dreamlib import data, distill, matching, networks, sampling, synthetic
from dreamlib.sampling import real_batches
assert data.__file__.startswith("{}"), data.__file__
assert "even_digits" in data.DATASETS and "moments" in matching.OBJECTIVES and "shallow" in networks.NETWORKS
assert "uncertain" in real_batches.SAMPLERS and "spread" in synthetic.initial.INITS
assert "smoothed" in matching.label_sources.LABELS
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", asked.format(tmp_path)], cwd=tmp_path, env=environment, check=True)


def test_what_it_refuses_is_refused_before_any_work(project):
    root, yaml = project.root, YAML()
    budget = PARAMS["budgets"]["tiny"] | {"network": {"name": "convnet", "options": {"norm": "batch"}}}
    yaml.dump(PARAMS | {"budgets": {"tiny": budget}}, root / "params.yaml")
    with pytest.raises(ValueError, match="use norm: instance"):
        Project.open(root)
    assert not (root / "results").exists()
