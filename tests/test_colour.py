"""Three channels all the way: every objective on colour, and classes that differ in hue alone from PNG to accuracy."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from test_objectives_contract import CASES, NETWORK, losses_and_gradients, make_state, options

from dreamlib import matching as objectives
from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib._engine.compute import Compute
from dreamlib.matching.experts import train_experts
from dreamlib.settings import ExpertParams
from dreamlib.training.augment import Augmentation
from pipeline.params import find_root
from pipeline.project import Project, Setting
from pipeline.report import figures
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import read_pictures, read_set, run_distillation
from pipeline.stages.evaluation import run_evaluation

ROOT = find_root(Path(__file__).parent)
EVERY_OP = "flip_color_crop_scale_rotate_cutout"
HUES = {"blue": (0.1, 0.2, 0.9), "green": (0.1, 0.9, 0.2), "red": (0.9, 0.2, 0.1)}  # one grey: their sums agree


@pytest.fixture(scope="session")
def colour_experts(toy_info, toy_data, tmp_path_factory):
    """Two experts of three epochs on colour toys."""
    folder, data = tmp_path_factory.mktemp("experts"), toy_data(channels=3)
    settings = ExpertParams(count=2, epochs=3, batch=8)
    train_experts(folder, data, replace(toy_info(channels=3), flip=True), NETWORK, settings, Compute(), seed=0)
    return folder


@pytest.mark.parametrize(("name", "small"), CASES)
def test_the_gradient_of_every_objective_reaches_every_channel(
    name, small, toy_info, toy_data, tiny, colour_experts, global_generators_untouched
):
    info, data = replace(toy_info(channels=3), flip=True), toy_data(channels=3)
    network, objective = tiny(info), objectives.make(name, options(name, small, colour_experts))
    for op in EVERY_OP.split("_"):  # 'dsa' would pick one of them by chance
        augmentation = Augmentation.parse(op)
        state = make_state(objective, data, info, network, factor=2, augmentation=augmentation)
        losses, gradients = losses_and_gradients(objective, state)
        assert all(loss.isfinite() for _, loss in losses)
        reached = gradients["canvases"].abs().sum((2, 3))  # (K·ipc, C)
        assert reached.isfinite().all() and (reached > 0).all(), op
        apart = gradients["canvases"] - gradients["canvases"].mean(1, keepdim=True)
        assert apart.abs().max() > 1e-3 * gradients["canvases"].abs().max(), f"{op}: channels are told apart"


@pytest.mark.parametrize("ops", ["color", EVERY_OP])
def test_the_pixel_gradient_of_each_channel_agrees_with_finite_differences(ops, toy_info, toy_data, tiny, float64, rng):
    info, data = replace(toy_info(channels=3), flip=True), toy_data(channels=3, dtype=torch.float64)
    network, objective = tiny(info, double=True), objectives.make("gradient", {})
    along = torch.randn(6, 3, 8, 8, generator=rng(4), dtype=torch.float64)

    def state(moved=0.0, channel=0):
        made = make_state(objective, data, info, network, compute=float64, augmentation=Augmentation.parse(ops))
        with torch.no_grad():
            made.synthetic.canvases[:, channel] += moved * along[:, channel]
        return made

    _, gradients = losses_and_gradients(objective, state())
    for channel in range(3):
        ahead, behind = (
            sum(float(loss.detach()) for _, loss in objective.losses(state(step, channel))) for step in (1e-7, -1e-7)
        )
        slope = (gradients["canvases"] * along)[:, channel].sum()
        assert float(slope) == pytest.approx((ahead - behind) / 2e-7, rel=1e-4)


def test_each_channel_is_normalised_by_its_own_statistics(toy_info, rng):
    info, x = toy_info(channels=3), torch.rand(5, 3, 8, 8, generator=rng())
    torch.testing.assert_close(info.normalise(x), torchvision.transforms.Normalize(info.mean, info.std)(x))


# ---- from files to an accuracy --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project on a folder of one's own: a spot of noisy grey, given three hues."""
    root = tmp_path_factory.mktemp("colour")
    rng = torch.Generator().manual_seed(0)
    squares = torch.linspace(-2, 2, 32).square()
    shades = 0.8 * torch.exp(-squares[:, None] - squares) + 0.1 * torch.rand(90, 1, 32, 32, generator=rng)
    for number, (name, hue) in enumerate(HUES.items()):
        (root / "mine" / name).mkdir(parents=True)
        for row, shade in enumerate(shades[number::3]):
            pixels = (shade * torch.tensor(hue).view(3, 1, 1) * 255).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(root / "mine" / name / f"{row:02}.png")
    for name in ("dvc.yaml", "methods.yaml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "dreamlib", root / "dreamlib", ignore=shutil.ignore_patterns("__pycache__"))
    values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    values.update(dataset="folder", ipc=[1], methods=["dream", "dm_dream"], seeds=[0], budget="tiny")
    values["data"].update(options={"path": str(root / "mine"), "size": 16, "channels": 3})
    values["compute"] = {"device": "cpu", "precision": "float32", "threads": 1}
    values["budgets"]["tiny"] = {
        "network": {"name": "convnet", "options": {"width": 8}},
        "validation_per_class": 4,
        "clustering": {"features": "random"},
        "distillation": {
            "outer_iterations": 2, "inner_iterations": 3, "real_batch": 8, "image_optimizer": "adam", "image_lr": 0.02,
            "network_steps": 1, "network_augmentation": EVERY_OP,
        },
        "evaluation": {"repeats": 1, "epochs": 80, "batch": 4, "lr": 0.03, "curve_networks": 0,
                       "augmentation": EVERY_OP},
    }  # fmt: skip
    with open(root / "params.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Project.open(root)


@pytest.mark.parametrize("method", ["dream", "dm_dream"])
def test_hue_alone_tells_classes_apart_from_png_to_accuracy(project, method):
    setting = Setting(method, 1, 0)
    assert project.info.classes == tuple(HUES) and project.info.channels == 3 and project.info.flip
    run_clustering(project, 1, 0)
    run_distillation(project, setting)
    stored = read_set(project, setting)
    assert stored.canvases.shape == (3, 3, 16, 16) and stored.stored_floats == 3 * 3 * 16 * 16
    images, labels = stored.decode()
    assert stored.bounded == (method == "dream")
    if not stored.bounded:  # dm's canvases are normalised
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (project.info.mean, project.info.std))
        images = images * std + mean
    by_class = torch.stack([images[labels == c].mean((0, 2, 3)) for c in range(3)])  # (K, C)
    assert by_class.argmax(1).tolist() == [2, 1, 0], "blue, green, red: no channel has changed places"
    done, _ = run_evaluation(project, setting)
    assert done.mean > 0.9, "grey would leave 1/3"
    path = project.root / "sheet.png"
    figures.write_contact_sheet(read_pictures(project, setting), 3, path, scale=1)
    with Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet)).float()[1:17]  # one row of three canvases
    shown = torch.stack([pixels[:, 1 + 17 * c : 17 + 17 * c].mean((0, 1)) for c in range(3)])
    clipped = images.clamp(0, 1).view(3, -1, 3, 16 * 16).mean((1, 3))  # of the crops, which are the canvas
    torch.testing.assert_close(shown / 255, clipped, rtol=0, atol=0.01)
