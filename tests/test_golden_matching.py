"""Gradient matching against the released code of IDC, DREAM and DC, in float64."""

import pytest
import torch
from golden_numbers import FLOAT64, assert_near_relative, convnet, golden, matching_state, plain_info

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib.data.types import LabeledImages
from dreamlib.matching.gradient import GradientMatching, matched_weights

TOLERANCE = 1e-8  # relative
LABEL = 3  # of all images
SETTINGS = {
    **{f"idc.{name}.{layers}": {"distance": distance, "layers": layers}
       for name, distance in (("mse", "mse"), ("l1", "l1"), ("cos", "cosine")) for layers in ("conv", "conv_linear")},
    "dc.ours": {"distance": "cosine", "layers": "conv_linear"},
    "dream_plus.mse": {"distance": "mse", "feature_weight": 1.0},
    "dream_plus.l1": {"distance": "l1", "feature_weight": 1.0},
}  # fmt: skip


@pytest.fixture
def numbers():
    return golden("matching")


@pytest.fixture
def network(numbers):
    return convnet(golden("matching", "weights."), plain_info(numbers["real.images"], 10))


def loss_and_gradient(numbers, network, options, together=False):
    """The loss of class 3 and its gradient to that class's two images, by the whole objective."""
    info = plain_info(numbers["real.images"], 10)
    real = LabeledImages(numbers["real.images"], numbers["real.labels"], 10)
    canvases = torch.zeros(20, 1, 28, 28, dtype=torch.float64)
    canvases[2 * LABEL : 2 * LABEL + 2] = numbers["syn.images"]
    objective = GradientMatching(**options)
    state = matching_state(objective, network, info, canvases, real, classes=(LABEL,))
    state.together = together
    ((label, loss),) = objective.losses(state)
    assert label == (-1 if together else LABEL)
    (gradient,) = torch.autograd.grad(loss.sum(), state.synthetic.canvases)
    ours = gradient[2 * LABEL : 2 * LABEL + 2]
    assert gradient.count_nonzero() == ours.count_nonzero()
    return loss.reshape(()), ours


def test_the_real_images_gradient(numbers, network):
    kernels, (matched, fixed) = CompiledNetwork(network, FLOAT64), matched_weights(network, "conv_linear")
    result = kernels.weight_gradient(matched, fixed, numbers["real.images"], numbers["real.labels"])
    layers = ["conv1", "conv2", "conv3", "linear"]
    assert len(result) == len(layers)
    for layer, gradient in zip(layers, result.values(), strict=True):
        assert_near_relative(gradient, numbers[f"real.gradient.{layer}.weight"], TOLERANCE)


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_pixel_gradient(name, numbers, network):
    loss, gradient = loss_and_gradient(numbers, network, SETTINGS[name])
    assert_near_relative(loss, numbers[f"{name}.loss"], TOLERANCE)
    assert_near_relative(gradient, numbers[f"{name}.gradient"], TOLERANCE)


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("dream_plus")])
def test_all_classes_in_one_function_give_the_same(name, numbers, network):
    """As on a GPU, where the loss of all classes is recorded as one CUDA graph; here the function runs as it is."""
    loss, gradient = loss_and_gradient(numbers, network, SETTINGS[name], together=True)
    assert_near_relative(loss, numbers[f"{name}.loss"], TOLERANCE)
    assert_near_relative(gradient, numbers[f"{name}.gradient"], TOLERANCE)
