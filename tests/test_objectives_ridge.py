"""Ridge regression on features against scikit-learn's and finite differences."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from test_objectives_contract import losses_and_gradients, make_state

from dreamlib import matching as objectives
from dreamlib.matching.ridge import _PositiveSolve, centred_targets, ridge_predictions
from dreamlib.training.augment import Augmentation


def test_predictions_are_those_of_scikit_learns_ridge():
    rng = torch.Generator().manual_seed(0)
    support, features = (torch.randn(n, 7, generator=rng, dtype=torch.float64) for n in (5, 9))
    targets = centred_targets(torch.tensor([0, 1, 2, 0, 1]), 3).double()
    alpha = 0.3 * float(support.square().sum(1).mean())
    theirs = Ridge(alpha=alpha, fit_intercept=False).fit(support.numpy(), targets.numpy()).predict(features.numpy())
    np.testing.assert_allclose(ridge_predictions(support, targets, features, 0.3).numpy(), theirs, rtol=1e-10)
    both = support.requires_grad_(True), features.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: ridge_predictions(a, targets, b, 0.3), both)


def test_the_solution_by_cholesky_is_the_solution():
    rng = torch.Generator().manual_seed(1)
    root, targets = (torch.randn(6, n, generator=rng, dtype=torch.float64, requires_grad=True) for n in (6, 3))
    system = lambda root: root @ root.T + 0.5 * torch.eye(6, dtype=torch.float64)  # noqa: E731
    result, expected = _PositiveSolve.apply(system(root), targets), torch.linalg.solve(system(root), targets)
    torch.testing.assert_close(result, expected)
    weights = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), (root, targets)) for x in (result, expected))
    torch.testing.assert_close(ours, theirs)
    assert _PositiveSolve.apply(-torch.eye(2), torch.ones(2, 1)).isnan().all()


def test_loss_and_gradient_on_real_and_distilled_images(toy_info, toy_data, tiny, float64):
    info, data = toy_info(), toy_data(dtype=torch.float64)
    network, objective = tiny(info, double=True), objectives.make("ridge", {"penalty": 0.1})
    state = make_state(
        objective, data, info, network, factor=2, compute=float64, augmentation=Augmentation.parse("none")
    )
    (result,), gradients = losses_and_gradients(objective, state)

    def features(images):
        return network.features(info.normalise(images.detach())).detach().numpy()

    ours, hard = state.synthetic.decode()
    real = torch.cat([state.real_images(c) for c in range(3)])
    labels = np.repeat(np.arange(3), len(real) // 3)
    x = features(ours)
    fitted = Ridge(alpha=0.1 * (x**2).sum(1).mean(), fit_intercept=False).fit(x, np.eye(3)[hard.numpy()] - 1 / 3)
    error = fitted.predict(features(real)) - (np.eye(3)[labels] - 1 / 3)
    assert result[0] == -1
    assert float(result[1]) == pytest.approx((error**2).sum(1).mean() / 2, rel=1e-9)

    def loss(shift):
        with torch.no_grad():
            state.synthetic.canvases[2, 0, 3, 4] += shift
            value = float(next(iter(objective.losses(state)))[1])
            state.synthetic.canvases[2, 0, 3, 4] -= shift
        return value

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(gradients["canvases"][2, 0, 3, 4]) == pytest.approx(numeric, rel=1e-5)


def test_a_penalty_must_be_positive():
    with pytest.raises(ValueError, match="greater than 0, got 0"):
        objectives.make("ridge", {"penalty": 0})
