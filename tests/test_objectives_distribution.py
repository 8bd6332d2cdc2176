"""Distribution matching against numpy."""

import numpy as np
import pytest
import torch
from test_objectives_contract import losses_and_gradients, make_state

from dreamlib import matching as objectives
from dreamlib.training.augment import Augmentation


@pytest.mark.parametrize("factor", [1, 2])
def test_loss_and_gradient_are_those_of_numpys_means(factor, toy_info, toy_data, tiny, float64):
    info, data = toy_info(), toy_data(dtype=torch.float64)
    network, objective = tiny(info, double=True), objectives.make("distribution", {})
    state = make_state(
        objective, data, info, network, factor=factor, compute=float64, augmentation=Augmentation.parse("none")
    )
    result, gradients = losses_and_gradients(objective, state)

    def features(images):
        normalised = (images.detach().numpy() - info.mean[0]) / info.std[0]
        return network.features(torch.from_numpy(normalised)).detach().numpy()

    expected = []
    for label in range(3):
        real, ours = features(state.real_images(label)), features(state.synthetic.decode_class(label))
        expected.append(((np.mean(real, 0) - np.mean(ours, 0)) ** 2).sum())
    assert [label for label, _ in result] == [0, 1, 2]
    np.testing.assert_allclose([float(loss) for _, loss in result], expected, rtol=1e-10)

    # One pixel of class 1, moved by hand: central differences of the sum over classes.
    def total(shift):
        with torch.no_grad():
            state.synthetic.canvases[2, 0, 3, 4] += shift
            value = sum(float(loss) for _, loss in objective.losses(state))
            state.synthetic.canvases[2, 0, 3, 4] -= shift
        return value

    numeric = (total(1e-5) - total(-1e-5)) / 2e-5
    assert float(gradients["canvases"][2, 0, 3, 4]) == pytest.approx(numeric, rel=1e-6)


def test_equal_sets_are_at_distance_zero_under_any_augmentation(toy_info, toy_data, tiny):
    info, data = toy_info(), toy_data(per_class=4)
    objective = objectives.make("distribution", {})
    state = make_state(objective, data, info, tiny(info), ipc=4)  # the canvases are all of the class's images
    assert all(float(loss.detach()) < 1e-9 for _, loss in objective.losses(state))


def test_dream_plus_adds_the_distance_of_mean_features_to_the_gradients(toy_info, toy_data, tiny, float64):
    info, data, results = toy_info(), toy_data(dtype=torch.float64), []
    for name, options in (("gradient", {}), ("distribution", {}), ("gradient", {"feature_weight": 0.3})):
        objective = objectives.make(name, options)
        state = make_state(objective, data, info, tiny(info, double=True), compute=float64)
        results.append(losses_and_gradients(objective, state))
    for (_, gradient), (_, features), (_, both) in zip(*(losses for losses, _ in results), strict=True):
        torch.testing.assert_close(both, gradient + 0.3 * features)
    gradient, features, both = (gradients["canvases"] for _, gradients in results)
    torch.testing.assert_close(both, gradient + 0.3 * features)
