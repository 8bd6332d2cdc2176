"""ZCA whitening against numpy and scikit-learn; then through experts, distillation and evaluation, on digits."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from sklearn.decomposition import PCA

import dreamlib
from dreamlib._engine.compute import Compute
from dreamlib.data import create, load_split, whitening
from dreamlib.data.whitening import ZCA, whitened_info
from dreamlib.distill import Distiller
from dreamlib.matching.experts import ExpertError, Experts, train_experts
from dreamlib.settings import DistillParams, ExpertParams
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.params import find_root
from pipeline.project import Project, Setting
from pipeline.stages import evaluation as stage_evaluation
from pipeline.stages.distillation import (
    describe,
    parameter_hash,
    read_pictures,
    read_set,
    read_snapshots,
    run_distillation,
)
from pipeline.stages.evaluation import run_evaluation
from pipeline.stages.experts import run_experts

ROOT = find_root(Path(__file__).parent)


@pytest.fixture
def images(rng):
    """200 colour images of 4×4 pixels in which neighbours go together and no two pixels have the same variance."""
    mixing = torch.randn(48, 48, generator=rng(1), dtype=torch.float64) * torch.linspace(0.05, 0.6, 48)
    return (torch.randn(200, 48, generator=rng(0), dtype=torch.float64) @ mixing + 0.5).view(200, 3, 4, 4)


def covariance(images):
    return np.cov(images.flatten(1).numpy(), rowvar=False)


@pytest.mark.parametrize("epsilon", [0.1, 3.0])
def test_each_direction_of_variance_lambda_gets_lambda_over_lambda_plus_epsilon(images, epsilon):
    variances, directions = np.linalg.eigh(covariance(images))
    expected = directions @ np.diag(variances / (variances + epsilon)) @ directions.T
    found = ZCA.fit(images, epsilon).apply(images)
    np.testing.assert_allclose(covariance(found), expected, atol=1e-10)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)


def test_two_pixels_by_hand():
    """(±1, 0) and (0, ±2): covariance diag(2/3, 8/3), no rotation, so each pixel is divided by √(λ + ε)."""
    images = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]], dtype=torch.float64).view(4, 1, 1, 2)
    found = ZCA.fit(images, epsilon=1 / 3).apply(images).view(4, 2)
    assert found[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert found[2].tolist() == pytest.approx([0.0, 2 / 3**0.5], abs=1e-12)


def test_without_epsilon_it_is_scikit_learns_whitening_turned_back(images):
    pca = PCA(whiten=True, svd_solver="full").fit(images.flatten(1).numpy())
    expected = pca.transform(images.flatten(1).numpy()) @ pca.components_
    found = ZCA.fit(images, epsilon=1e-13).apply(images).flatten(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(covariance(found.view(-1, 48, 1, 1)), np.eye(48), atol=1e-6)


def test_undoing_gives_back_images_it_has_never_seen(images, rng):
    zca, others = ZCA.fit(images[:150]), torch.rand(7, 3, 4, 4, generator=rng(2), dtype=torch.float64)
    assert not torch.allclose(zca.apply(others), others, atol=0.1)
    torch.testing.assert_close(zca.undo(zca.apply(others)), others, rtol=0, atol=1e-10)
    half = others.to(torch.bfloat16)
    assert zca.apply(half).dtype == torch.bfloat16
    torch.testing.assert_close(zca.apply(others.float()), zca.apply(others).float(), rtol=0, atol=1e-5)


def test_chunks_and_order_make_no_difference_and_constant_pixels_no_harm(images, rng, monkeypatch):
    images[:, 1, 2, 3] = 0.25
    whole = ZCA.fit(images)
    monkeypatch.setattr(whitening, "CHUNK", 64)
    parts = ZCA.fit(images[torch.randperm(200, generator=rng())])
    torch.testing.assert_close(parts.apply(images), whole.apply(images), rtol=0, atol=1e-9)
    assert whole.apply(images)[:, 1, 2, 3].abs().max() < 1e-9
    assert ZCA.fit(images).apply(images[:0]).shape == (0, 3, 4, 4)


def test_refusals_name_value_and_remedy(images):
    with pytest.raises(ValueError, match=r"at least 2 images.*got 1"):
        ZCA.fit(images[:1])
    with pytest.raises(ValueError, match=r"epsilon = 0 must be above 0, for example 0\.1"):
        ZCA.fit(images, epsilon=0)
    with pytest.raises(ValueError, match=r"of 48 pixels.* have 27"):
        ZCA.fit(images).apply(torch.zeros(2, 3, 3, 3))
    with pytest.raises(ValueError, match=r"factor = 2.*set factor: 1, or whitening: none"):
        DistillParams(whitening="zca", factor=2)
    with pytest.raises(ValueError, match=r"whitening = zca makes pixels unbounded: set bounded: false"):
        DistillParams(whitening="zca", factor=1)


# ---- canvases without bounds ----------------------------------------------------------------------------------------


def test_canvases_are_clamped_where_pixels_are_bounded_and_nowhere_else(toy_info, toy_data):
    data, info = toy_data(per_class=16), toy_info()
    settings = DistillParams(
        factor=1, real_batch=8, outer_iterations=2, inner_iterations=1, image_lr=3.0, image_optimizer="adam",
        train_on="none", augmentation="none",
    )  # fmt: skip
    start = fill(data, random_rows(data, 1, 0), 1, 1, "single")
    for seen, bounded in ((info, True), (info.unbounded(), False), (whitened_info(info), False)):
        result = Distiller(start, data, seen, settings, ("convnet", {"width": 8}), Compute(), seed=0).run()
        for canvases in (result.synthetic.canvases, result.snapshots[2]):
            assert bool(((canvases >= 0) & (canvases <= 1)).all()) == bounded
        assert torch.equal(result.snapshots[2], result.synthetic.canvases)


def test_experts_are_not_followed_across_a_whitening(tmp_path, toy_info, toy_data, tiny):
    data, info = toy_data(per_class=4), toy_info()
    settings = ExpertParams(count=1, epochs=1, batch=8, augmentation="none")
    for about, other in ((info, whitened_info(info)), (whitened_info(info), info)):
        train_experts(tmp_path, data, about, ("convnet", {"width": 8}), settings, Compute(), seed=0)
        assert Experts.open(tmp_path, tiny(), about).epochs == 1
        message = f"trained on images with whitening {about.whitening}, not {other.whitening}: make them with"
        with pytest.raises(ExpertError, match=message):
            Experts.open(tmp_path, tiny(), other)


def test_a_whitened_set_is_loaded_as_networks_expect_it(tmp_path):
    canvases = torch.tensor([-2.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    info = {"mean": [0.0], "std": [1.0], "whitening": "zca"}
    SyntheticSet(canvases, torch.arange(2), 2, info=info).save(tmp_path / "w.safetensors")
    for normalise in (True, False):
        loaded = dreamlib.load(tmp_path / "w.safetensors", normalise)
        assert torch.equal(loaded.images, canvases) and loaded.set.whitening == "zca"
    assert SyntheticSet(canvases, torch.arange(2), 2).whitening == "none"


# ---- the whole way, on digits ---------------------------------------------------------------------------------------

MTT = {
    "objective": "trajectory",
    "options": {"synthetic_steps": 3, "expert_epochs": 1, "max_start": 2, "step_size": 0.05}, "bounded": False,
    "init": "random", "factor": 1, "whitening": {1: "zca", 2: "none"}, "augmentation": "none", "train_on": "none",
    "network_steps": 0, "outer_iterations": 3, "inner_iterations": 1, "image_optimizer": "adam", "image_lr": 0.05,
    "learned_lr": 1e-4, "snapshots": 1,
}  # fmt: skip
TAUGHT = {"init": "kmeans", "factor": 1, "whitening": "zca", "bounded": False, "outer_iterations": 0,
          "labels": "assigned", "teacher_epochs": 25}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """MTT on whitened digits at ipc 1, on normalised ones at ipc 2; and a teacher's labels on whitened real images."""
    root = tmp_path_factory.mktemp("whitened")
    shutil.copy(ROOT / "dvc.yaml", root / "dvc.yaml")
    shutil.copytree(ROOT / "dreamlib", root / "dreamlib", ignore=shutil.ignore_patterns("__pycache__"))
    create("digits").fetch(root / "data")
    values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    values.update(dataset="digits", ipc=[1, 2], methods=["mtt", "taught", "random"], seeds=[0], budget="tiny")
    values["compute"] = {"device": "cpu", "precision": "float32", "threads": 1}
    methods = YAML(typ="safe", pure=True).load(ROOT / "methods.yaml")
    methods["method"].update(mtt=MTT, taught=TAUGHT)
    values["budgets"]["tiny"] = {
        "network": {"name": "convnet", "options": {"width": 8}},
        "validation_per_class": 20,
        "clustering": {"features": "random"},
        "experts": {"count": 1, "epochs": 2, "batch": 32},
        "evaluation": {"repeats": 1, "epochs": 60, "batch": 16, "curve_epochs": 5, "augmentation": "none", "lr": 0.05},
    }
    for name, content in {"params.yaml": values, "methods.yaml": methods}.items():
        YAML(typ="safe", pure=True).dump(content, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Project.open(root)


def evaluated(project, setting, monkeypatch):
    """The evaluation, and what its networks were asked about: test images, validation images, each with statistics."""
    calls, evaluate, curve = [], stage_evaluation.evaluate, stage_evaluation.curve
    with monkeypatch.context() as patch:
        patch.setattr(stage_evaluation, "evaluate", lambda *a, **k: (calls.append(a[1:3]), evaluate(*a, **k))[1])
        patch.setattr(stage_evaluation, "curve", lambda *a, **k: (calls.append(a[2:4]), curve(*a, **k))[1])
        return run_evaluation(project, setting), calls


def whitened_by_scikit_learn(train, images):
    pca = PCA(svd_solver="full").fit(train.flatten(1).double().numpy())
    scaled = pca.transform(images.flatten(1).double().numpy()) / np.sqrt(pca.explained_variance_ + 0.1)
    return torch.from_numpy(scaled @ pca.components_).float().view(images.shape)


def test_mtt_from_experts_to_accuracy(project, monkeypatch):
    made = [path.relative_to(project.results).as_posix() for path in run_experts(project)]
    assert made == ["experts/expert-000.safetensors", "experts/zca/expert-000.safetensors"]
    train, test = project.split("train"), load_split("digits", "test", project.root / "data", 20, 0)
    for ipc in (1, 2):
        setting, whitened = Setting("mtt", ipc, 0), ipc == 1
        result = run_distillation(project, setting)
        (done, points), calls = evaluated(project, setting, monkeypatch)
        for (against, info), real in zip(calls, (test, project.split("validation")), strict=True):
            normalised = (real.images - project.info.mean[0]) / project.info.std[0]
            expected = whitened_by_scikit_learn(train.images, real.images) if whitened else normalised
            torch.testing.assert_close(against.images, expected, rtol=0, atol=1e-5)
            assert (info.mean, info.std, info.bounded) == ((0.0,), (1.0,), False)
        assert done.mean > 0.3 and len(points) == 2, "chance is 0.1"
        stored = read_set(project, setting)
        assert stored.whitening == ("zca" if whitened else "none") == stored.info.get("whitening", "none")
        own = ([0.0], [1.0]) if whitened else (list(project.info.mean), list(project.info.std))
        assert (stored.info["mean"], stored.info["std"], stored.bounded) == (*own, False)
        assert stored.canvases.min() < 0
        pictures = read_pictures(project, setting)
        assert 0 <= pictures.min() < 0.2 and 0.8 < pictures.max() <= 1
        start = project.pictures(stored, read_snapshots(project, setting)[0])
        real = [(train.images - picture).abs().amax((1, 2, 3)).min() for picture in start]
        assert max(real) < 1e-5, "undone, the start shows the real images it was taken from"
        assert len(result.history) == 3


def test_a_teacher_labels_whitened_images_as_one_who_saw_them(project, monkeypatch):
    from pipeline.stages.clustering import representatives, run_clustering

    setting = Setting("taught", 1, 0)
    run_clustering(project, 1, 0)
    run_distillation(project, setting)
    stored, rows = read_set(project, setting), representatives(project, setting, 1).flatten()
    own = project.zca_with(whitening.EPSILON).apply(project.split("train").images[rows])
    torch.testing.assert_close(stored.canvases, own, rtol=0, atol=1e-6)
    right = stored.soft_labels.argmax(1) == stored.labels
    assert right.float().mean() >= 0.8, "a teacher of other images than these would be guessing"
    (done, _), _ = evaluated(project, setting, monkeypatch)
    assert done.mean > 0.3


def test_validation_and_test_images_play_no_part_in_the_statistics(project):
    train = project.split("train")
    expected = np.cov(train.images.flatten(1).double().numpy(), rowvar=False)
    variances, directions = np.linalg.eigh(expected)
    matrix = directions @ np.diag(1 / np.sqrt(variances + 0.1)) @ directions.T
    np.testing.assert_allclose(project.zca_with(whitening.EPSILON).matrix, matrix, atol=1e-9)


def test_a_sets_own_epsilon_whitens_the_real_images_beside_it(project):
    images, train = project.split("validation").subset(torch.arange(5)), project.split("train").images
    about = {"bounded": False, "mean": [0.0], "std": [1.0], "whitening": "zca", "zca_epsilon": 0.5}
    stored = SyntheticSet(images.images[:3], torch.arange(3), 3, info=about)
    against, info = project.images_in_units_of(images, stored)
    pca = PCA(svd_solver="full").fit(train.flatten(1).double().numpy())
    scaled = pca.transform(images.images.flatten(1).double().numpy()) / np.sqrt(pca.explained_variance_ + 0.5)
    expected = torch.from_numpy(scaled @ pca.components_).float().view(images.images.shape)
    torch.testing.assert_close(against.images, expected, rtol=0, atol=1e-5)
    assert (info.whitening, info.zca_epsilon, info.normalised_by) == ("zca", 0.5, None)
    torch.testing.assert_close(project.pictures(stored, against.images), images.images, rtol=0, atol=1e-5)


def test_pixels_are_seen_as_they_are_where_nothing_is_asked_for(project, monkeypatch):
    monkeypatch.setattr(ZCA, "fit", lambda *a: pytest.fail("no whitening was asked for"))
    apart, setting = Project(project.root, project.params), Setting("random", 1, 0)
    how, images = apart.params.distillation("random", 1), apart.split("train")
    assert apart.images_for_method(images, how) == (images, apart.info)
    normalised, info = apart.images_for_method(images, how.model_copy(update={"bounded": False}))
    assert torch.equal(normalised.images, apart.info.normalise(images.images)) and info == apart.info.unbounded()
    # Pictures show canvases, or other images in their units, with what lies outside [0, 1] clipped.
    made = SyntheticSet(2 * images.images[:3] - 0.5, torch.arange(3), 3)
    assert torch.equal(apart.pictures(made), made.canvases.clamp(0, 1)) and made.canvases.min() < 0
    made.info = {"bounded": False, "mean": list(apart.info.mean), "std": list(apart.info.std)}
    torch.testing.assert_close(apart.pictures(made, normalised.images), images.images)
    method = {**project.params.method, "random": {**project.params.method["random"], "bounded": False}}
    changed = replace(apart, params=project.params.model_copy(update={"method": method}))
    assert parameter_hash(changed, setting) != parameter_hash(apart, setting)


def test_a_methods_statistics_are_those_its_images_and_its_set_are_normalised_by(project):
    """DC's of CIFAR-100 differ from those IDC and DREAM use; where a data set has one pair, both methods use it."""
    dc = {"mean": (0.5,), "std": (0.2,)}
    apart = Project(project.root, project.params)
    object.__setattr__(apart, "info", replace(project.info, dc_statistics=(dc["mean"], dc["std"])))
    images, how = apart.split("train").subset(torch.arange(4)), DistillParams(statistics="dc", bounded=False)
    for opened, (mean, std) in ((apart, (0.5, 0.2)), (project, (project.info.mean[0], project.info.std[0]))):
        seen, _ = opened.images_for_method(images, how)
        torch.testing.assert_close(seen.images, (images.images - mean) / std)
        about = describe(opened, Setting("random", 1, 0), how)
        assert (about["mean"], about["std"], about["bounded"]) == ([mean], [std], False)
        against, _ = opened.images_in_units_of(images, SyntheticSet(seen.images, torch.arange(4), 4, info=about))
        assert torch.equal(against.images, seen.images), "evaluation normalises as the method did"
