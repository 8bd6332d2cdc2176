"""DM, MTT, FRePo and ZCA whitening against their released code, in float64."""

import json

import pytest
import torch
from golden_numbers import (
    FLOAT64,
    assert_near,
    assert_near_relative,
    convnet,
    golden,
    matching_state,
    plain_info,
)
from safetensors.torch import save_file
from torch import nn

from dreamlib._engine.compiled_network import CompiledNetwork, weights_of
from dreamlib.data.types import LabeledImages
from dreamlib.data.whitening import ZCA
from dreamlib.matching.distribution import DistributionMatching
from dreamlib.matching.experts import FORMAT, Experts, expert_path
from dreamlib.matching.inner import InnerTraining
from dreamlib.matching.ridge import RidgeRegression, centred_targets, ridge_predictions
from dreamlib.matching.trajectory import TrajectoryMatching, squared_distance
from dreamlib.networks import build

TOLERANCE = 1e-9

# ---- DM -------------------------------------------------------------------------------------------------------------


def test_distribution_matching():
    numbers = golden("other_methods", "dm.")
    real, info = numbers["real"].flatten(0, 1), plain_info(numbers["syn"], 3)
    network = convnet(golden("other_methods", "dm.weights."), info)
    features = CompiledNetwork(network, FLOAT64).features
    for images, name in ((real, "real"), (numbers["syn"], "syn")):
        means = features(weights_of(network), images).unflatten(0, (3, -1)).mean(1)
        assert_near(means, numbers[f"{name}_mean_features"], TOLERANCE)
    data = LabeledImages(real, torch.arange(3).repeat_interleave(4), 3)
    objective = DistributionMatching()
    state = matching_state(objective, network, info, numbers["syn"], data)
    losses = dict(objective.losses(state))
    assert list(losses) == [0, 1, 2]
    total = sum(losses.values())
    assert_near(total, numbers["loss"], TOLERANCE)
    (gradient,) = torch.autograd.grad(total, state.synthetic.canvases)
    assert_near(gradient, numbers["gradient"], TOLERANCE)


# ---- MTT ------------------------------------------------------------------------------------------------------------

STEPS = {"linear": 2, "linear_batches": 3, "convnet": 2}


def by_name(flat, network):
    """Flat weights as a network's parameters, in its order."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    parts = zip(network.named_parameters(), flat.split(sizes), strict=True)
    return {name: part.view(parameter.shape).contiguous() for (name, parameter), part in parts}


@pytest.fixture
def trajectory(tmp_path):
    """name → (numbers, images (N, C, H, W), network, objective, state), with an expert of the recorded ends."""

    def make(name, recompute=True, max_start=1):
        numbers = golden("other_methods", f"mtt.{name}.")
        images = numbers["images"] if numbers["images"].ndim == 4 else numbers["images"].view(-1, 1, 2, 2)
        info = plain_info(images, 3)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        if name == "convnet":
            network = build("convnet", info, torch.Generator(), {"width": 4})
        network = network.double()
        ends = [by_name(numbers[end], network) for end in ("start", "target")]
        epochs = {key: torch.stack([ends[0][key]] * max_start + [ends[1][key]]) for key in ends[0]}
        about = {"format": FORMAT, "key": "golden", "dataset": info.name, "network": [name, {}]}
        save_file(epochs, expert_path(tmp_path, 0), {"dreamlib": json.dumps(about)})
        objective = TrajectoryMatching(
            experts=str(tmp_path), synthetic_steps=STEPS[name], expert_epochs=1, max_start=max_start,
            batch=int(numbers.get("batch", 0)), step_size=numbers["rate"].item(), recompute=recompute,
        )  # fmt: skip
        no_real_images = LabeledImages(images[:0], torch.zeros(0, dtype=torch.long), 3)
        return numbers, images, network, objective, matching_state(objective, network, info, images, no_real_images)

    return make


@pytest.mark.parametrize("name", ["linear", "convnet"])
def test_trajectory_matchings_inner_steps(name, trajectory):
    numbers, images, network, _, _ = trajectory(name)
    start, target = (by_name(numbers[end], network) for end in ("start", "target"))
    result = InnerTraining(network).run(
        start, [(images, numbers["labels"])] * STEPS[name], [numbers["rate"]] * STEPS[name]
    )
    assert_near(torch.cat([value.flatten() for value in result.values()]), numbers["after_last_step"], TOLERANCE)
    assert_near(squared_distance(result, target) / squared_distance(start, target), numbers["loss"], TOLERANCE)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_trajectory_matching(name, recompute, trajectory, monkeypatch):
    numbers, images, _, objective, state = trajectory(name, recompute)
    assert numbers["labels"].tolist() == state.synthetic.labels.tolist()
    if "permutations" in numbers:
        drawn = iter(numbers["permutations"])
        monkeypatch.setattr(torch, "randperm", lambda count, generator: next(drawn))
    ((label, loss),) = objective.losses(state)
    assert label == -1
    assert_near(loss, numbers["loss"], TOLERANCE)
    (rate,) = state.synthetic.extras.values()
    gradient, rate_gradient = torch.autograd.grad(loss, [state.synthetic.canvases, rate])
    assert_near(gradient, numbers["gradient"].view(images.shape), TOLERANCE)
    assert_near(rate_gradient, numbers["rate_gradient"], TOLERANCE)


@pytest.mark.parametrize("most", [2, 20])
def test_trajectories_start_before_the_largest_epoch(most, trajectory, monkeypatch):
    *_, objective, state = trajectory("linear", max_start=most)
    asked, weights = [], Experts.weights
    monkeypatch.setattr(
        Experts, "weights", lambda self, expert, epoch, *to: asked.append(epoch) or weights(self, expert, epoch, *to)
    )
    for iteration in range(20 * most):
        state.iteration = iteration
        next(objective.losses(state))
    starts, goals = asked[::2], asked[1::2]
    assert sorted(set(starts)) == golden("other_methods")[f"mtt.start_epochs_possible.max{most}"].tolist()
    assert goals == [start + 1 for start in starts]


# ---- FRePo ----------------------------------------------------------------------------------------------------------

RELATIVE = 1e-6


@pytest.mark.parametrize("name", ["hard", "learned", "strong"])
def test_ridge_regression_on_features(name):
    numbers = golden("other_methods", f"frepo.{name}.")
    support, targets = numbers["support"].requires_grad_(), numbers["targets"].requires_grad_()
    predicted = ridge_predictions(support, targets, numbers["features"], numbers["penalty"].item())
    assert_near_relative(predicted, numbers["predictions"], RELATIVE)
    loss = (predicted - numbers["labels"]).square().sum(1).mean() / 2
    assert_near_relative(loss, numbers["kernel_loss"], RELATIVE)
    of_support, of_targets = torch.autograd.grad(loss, [support, targets])
    assert_near_relative(of_support, numbers["support_gradient"], RELATIVE)
    assert_near_relative(of_targets, numbers["target_gradient"], RELATIVE)


class Pixels(nn.Module):
    """A network whose features are the pixels."""

    def features(self, x):
        return x.flatten(1)


@pytest.mark.parametrize("name", ["hard", "strong"])
def test_the_objective_on_hard_labels_without_the_margin_term(name):
    numbers = golden("other_methods", f"frepo.{name}.")
    support, features = (numbers[key].view(-1, 1, 10, 1) for key in ("support", "features"))
    labels = numbers["labels"].argmax(1)
    assert_near(centred_targets(labels, 3, torch.float64), numbers["labels"], TOLERANCE)
    objective, info = RidgeRegression(penalty=numbers["penalty"].item()), plain_info(support, 3)
    state = matching_state(objective, Pixels(), info, support, LabeledImages(features, labels, 3))
    assert_near(centred_targets(state.synthetic.labels, 3, torch.float64), numbers["targets"], TOLERANCE)
    ((label, loss),) = objective.losses(state)
    assert label == -1
    assert_near_relative(loss, numbers["kernel_loss"], RELATIVE)
    (gradient,) = torch.autograd.grad(loss, state.synthetic.canvases)
    assert_near_relative(gradient.flatten(1), numbers["support_gradient"], RELATIVE)


# ---- ZCA ------------------------------------------------------------------------------------------------------------


def test_zca_whitening_there_and_back():
    numbers = golden("other_methods", "zca.")
    zca = ZCA.fit(numbers["images"])
    assert_near(zca.mean, numbers["mean"][0], TOLERANCE)
    assert_near(zca.matrix, numbers["matrix"], TOLERANCE)
    assert_near(zca.inverse, numbers["inverse"], TOLERANCE)
    assert_near(zca.apply(numbers["images"]), numbers["whitened"], TOLERANCE)
    assert_near(zca.apply(numbers["other"]), numbers["other_whitened"], TOLERANCE)
    assert_near(zca.undo(numbers["other_whitened"]), numbers["other_back"], TOLERANCE)
