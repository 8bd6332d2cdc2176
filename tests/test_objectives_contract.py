"""Every objective keeps one contract, and the whole distiller runs with each."""

import copy

import pytest
import torch

from dreamlib import matching as objectives
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.data.types import LabeledImages
from dreamlib.distill import Distiller
from dreamlib.matching import OBJECTIVES, MatchState, Objective
from dreamlib.matching.experts import train_experts
from dreamlib.sampling.real_batches import RandomSampler
from dreamlib.settings import DistillParams, ExpertParams
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.training.augment import Augmentation

NETWORK = ("convnet", {"width": 8})
SMALL = {  # options that make a setting small; the rest is default
    "gradient": [{}, {"feature_weight": 0.1}, {"distance": "cosine", "layers": "conv_linear"}],
    "distribution": [{}],
    "ridge": [{}],
    "trajectory": [{"synthetic_steps": 3, "max_start": 2, "step_size": 0.05}],
    "unrolled": [
        {"steps": 2, "passes": 2, "real_batch": 32},
        {"steps": 1, "passes": 3, "window": 2, "real_batch": 0, "learn_labels": True},
        {"passes": 1, "real_batch": 32, "optimizer": "adam", "learn_rates": False, "augment_real": True, "steps": 2},
    ],
}
CASES = [pytest.param(name, small, id=f"{name}-{i}") for name in SMALL for i, small in enumerate(SMALL[name])]


@pytest.fixture(scope="session")
def experts(digits, toy_info, tmp_path_factory):
    """Two experts of three epochs on digits."""
    folder, info = tmp_path_factory.mktemp("experts"), toy_info(classes=10, name="digits")
    settings = ExpertParams(count=2, epochs=3, batch=128)
    train_experts(folder, digits, info, NETWORK, settings, Compute(), seed=0)
    return folder


def options(name, small, experts):
    return small | ({"experts": str(experts)} if name == "trajectory" else {})


def make_state(objective, data, info, network, *, ipc=2, factor=1, compute=None, **changes):
    """A matching state with leaves for the canvases and for whatever the objective learns."""
    synthetic = fill(data, random_rows(data, ipc * factor**2, 0), ipc, factor, "single")
    synthetic.canvases = synthetic.canvases.clone().requires_grad_(True)
    learned = objective.learned(synthetic)
    synthetic.extras = {key: value.clone().requires_grad_(True) for key, value in learned.items()}
    given = {"augmentation": Augmentation.parse("color_crop_cutout", mode="dsa"), "seed": 0, "iteration": 3, **changes}
    sampler, kernels = RandomSampler(data, 16, given["seed"]), CompiledNetwork(network, compute or Compute())
    return MatchState(synthetic, network, kernels, sampler, info, synthetic_batch=128, **given)


def losses_and_gradients(objective, state):
    """The losses as yielded, and the gradients of their sum, one by one as the distiller does."""
    leaves, losses = {"canvases": state.synthetic.canvases, **state.synthetic.extras}, []
    for label, loss in objective.losses(state):
        loss.backward(inputs=list(leaves.values()))
        losses.append((label, loss.detach()))
    return losses, {name: leaf.grad for name, leaf in leaves.items()}


def test_every_registered_objective_is_tested_here():
    assert sorted(SMALL) == OBJECTIVES.names(), "add the small options of a new objective to SMALL"


def test_an_objective_of_losses_alone_has_every_other_hook(toy_info, tiny):
    class Bare(Objective):
        def losses(self, state):
            yield from ()

    bare, info = Bare(), toy_info()
    bare.check(tiny(info), info)
    assert bare.open_experts(tiny(info), info) is None
    assert (bare.by_class, bare.uses_sampler, bare.learns_labels, bare.sampler_option) == (True, True, False, "")


def test_objectives_with_experts_or_labels_say_so(toy_info, tiny, experts, digits):
    info = toy_info(classes=10, name="digits")
    followed = objectives.make("trajectory", {"experts": str(experts)}).open_experts(tiny(info), info)
    followed.check_complete(count=2, epochs=3)
    unrolled = objectives.make("unrolled", {"learn_labels": True})
    assert unrolled.learns_labels and not unrolled.uses_sampler
    name, value = unrolled.sampler_option.removeprefix("options.").split(": ")
    assert objectives.make("unrolled", {name: int(value)}).uses_sampler


@pytest.mark.parametrize(("name", "small"), CASES)
def test_finite_deterministic_and_nothing_else_is_changed(
    name, small, digits, toy_info, tiny, experts, global_generators_untouched
):
    info = toy_info(classes=10, name="digits")
    # A batch norm's running statistics are the part of a network that is easily changed by accident.
    network, objective = tiny(info, norm="batch"), objectives.make(name, options(name, small, experts))
    before, images, labels = copy.deepcopy(network.state_dict()), digits.images.clone(), digits.labels.clone()
    modes = [(module.training, [p.requires_grad for p in module.parameters()]) for module in network.modules()]
    runs = [losses_and_gradients(objective, make_state(objective, digits, info, network, factor=2)) for _ in range(2)]
    (losses, gradients), (again, gradients_again) = runs
    assert losses == again
    assert all(loss.isfinite() and loss.ndim == 0 and -1 <= label < 10 for label, loss in losses)
    for key, gradient in gradients.items():
        assert gradient.isfinite().all()
        assert torch.equal(gradient, gradients_again[key])
        assert gradient.abs().sum() > 0
    assert (gradients["canvases"].flatten(1).abs().sum(1) > 0).all()  # every canvas is reached
    assert torch.equal(images, digits.images) and torch.equal(labels, digits.labels)
    assert not digits.images.requires_grad
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in network.parameters())
    assert modes == [(module.training, [p.requires_grad for p in module.parameters()]) for module in network.modules()]
    other, _ = losses_and_gradients(objective, make_state(objective, digits, info, network, factor=2, seed=1))
    assert other != losses


@pytest.mark.parametrize(("name", "small"), CASES)
def test_real_images_of_bytes_give_the_bits_of_their_floats(name, small, digits, toy_info, tiny, experts):
    info, stored = toy_info(classes=10, name="digits"), (digits.images * 255).round().to(torch.uint8)
    objective, found = objectives.make(name, options(name, small, experts)), []
    for images in (stored, stored.to(torch.float32).div_(255)):
        state = make_state(objective, LabeledImages(images, digits.labels, 10), info, tiny(info), factor=2)
        found.append(losses_and_gradients(objective, state))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[1][1])


@pytest.mark.parametrize(("name", "small"), CASES)
def test_the_whole_distiller_runs(name, small, digits, toy_info, experts, global_generators_untouched):
    info = toy_info(classes=10, name="digits")
    settings = DistillParams(
        objective=name, options=options(name, small, experts), factor=1, real_batch=16, outer_iterations=2,
        inner_iterations=2, image_lr=0.05, image_momentum=0.5, learned_lr=1e-3, augmentation="color_crop_cutout",
        augmentation_mode="dsa", train_on="none", network_steps=0,
    )  # fmt: skip
    start = fill(digits, random_rows(digits, 2, 0), 2, 1, "single")
    runs = [Distiller(start, digits, info, settings, NETWORK, Compute(), seed=0) for _ in range(2)]
    done, half = runs[0].run(), runs[1]
    assert len(done.history) == 4
    assert not torch.equal(done.synthetic.canvases, start.canvases)
    assert 0 <= done.synthetic.canvases.min() <= done.synthetic.canvases.max() <= 1
    half.step()
    saved = copy.deepcopy(half.state())
    resumed = Distiller(start, digits, info, settings, NETWORK, Compute(), seed=0)
    resumed.load_state(saved)
    result = resumed.run()
    assert result.history == done.history
    for key, value in done.synthetic.extras.items():
        assert torch.equal(value, result.synthetic.extras[key])
        assert not torch.equal(value, runs[0].objective.learned(start)[key])
