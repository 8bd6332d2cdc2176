"""Unrolled training against torch.optim, its derivatives against finite differences; its replay against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_objectives_contract import losses_and_gradients, make_state
from test_objectives_trajectory import Linear

from dreamlib import matching as objectives
from dreamlib.evaluation import evaluate
from dreamlib.matching.inner import InnerTraining, parameters_of
from dreamlib.matching.unrolled import replay
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation

SMALL = {"steps": 2, "passes": 2, "step_size": 0.3, "real_batch": 24}


@pytest.fixture
def unrolled_state(toy_info, toy_data, tiny, float64):
    """Objective and state in float64, with a smooth network: finite differences stumble over the kinks of a ReLU."""

    def make(factor=2, augmentation="none", **options):
        info, objective = toy_info(), objectives.make("unrolled", SMALL | options)
        network = tiny(info, double=True, activation="silu")
        data = toy_data(dtype=torch.float64)
        chosen = {"factor": factor, "compute": float64, "augmentation": Augmentation.parse(augmentation)}
        return objective, make_state(objective, data, info, network, **chosen)

    return make


@pytest.mark.parametrize(("optimizer", "scale", "tolerance"), [("sgd", 1, 1e-13), ("adam", 0.01, 1e-6)])
@pytest.mark.parametrize("recompute", [True, False])
def test_steps_are_those_of_torch(recompute, optimizer, scale, tolerance, tiny, rng):
    """Adam's ε is under the root here and beside it there, which matters where a gradient is of its size."""
    network = tiny(double=True)
    x, rates = torch.randn(4, 6, 1, 8, 8, generator=rng(), dtype=torch.float64), torch.tensor([0.1, 0.5, 0.2, 0.9])
    y, soft = torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6, 3, generator=rng(1), dtype=torch.float64).softmax(1)
    training = InnerTraining(network, recompute, optimizer)
    carried = training.start({name: value.clone() for name, value in parameters_of(network).items()})
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](network.parameters(), lr=1.0)
    for step, lr in enumerate((scale * rates).double().requires_grad_()):
        labels = soft if step % 2 else y
        carried = training.step(carried, x[step], labels, lr)
        theirs.param_groups[0]["lr"] = float(lr.detach())
        theirs.zero_grad()
        F.cross_entropy(network(x[step]), labels).backward()
        theirs.step()
        weights = training.weights(carried)
        assert list(weights) == [name for name, _ in network.named_parameters()]
        for name, p in network.named_parameters():
            torch.testing.assert_close(weights[name], p, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("optimizer", "shift"), [("sgd", 1e-5), ("adam", 1e-7)])
@pytest.mark.parametrize("recompute", [True, False])
def test_hyper_gradients_are_those_of_finite_differences(recompute, optimizer, shift, unrolled_state, rng):
    """Adam's steps are sharp turns where a gradient changes its sign: only small differences see the slope."""
    more = {"learn_labels": True, "augment_real": True, "optimizer": optimizer, "step_size": 0.03}
    objective, state = unrolled_state(recompute=recompute, augmentation="color_crop_cutout", **more)
    _, gradients = losses_and_gradients(objective, state)
    leaves = {"canvases": state.synthetic.canvases, **state.synthetic.extras}
    assert set(leaves) == {"canvases", "step_sizes", "label_logits"}

    def loss_at(leaf, direction, shift):
        with torch.no_grad():
            leaf += shift * direction
            value = float(next(objective.losses(state))[1])
            leaf -= shift * direction
        return value

    for seed, (name, leaf) in enumerate(leaves.items()):
        one = torch.zeros_like(leaf).flatten()
        one[-3] = 1.0  # one number alone, and all in a random direction
        for direction in (one.view_as(leaf), torch.randn(leaf.shape, generator=rng(seed), dtype=torch.float64)):
            numeric = (loss_at(leaf, direction, shift) - loss_at(leaf, direction, -shift)) / (2 * shift)
            assert numeric != 0
            assert float((gradients[name] * direction).sum()) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_window_differentiates_the_last_steps_alone(seed, unrolled_state):
    """Against the same training written with torch.optim up to the window and plain autograd inside it."""
    objective, state = unrolled_state(window=2, passes=3)
    state.seed = seed
    state.sampler.seed = seed
    ((_, loss),), gradients = losses_and_gradients(objective, state)
    reached = gradients["step_sizes"].nonzero().flatten().tolist()
    assert len(reached) == 2
    assert reached[1] == reached[0] + 1
    network, images = state.network, state.synthetic.canvases.detach().clone().requires_grad_()
    state.synthetic.canvases = images
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    parameters = dict(network.named_parameters())
    for step in range(reached[1] + 1):
        decoded, labels = state.synthetic.decode()
        keep = torch.arange(len(labels)).view(3, 8)[:, step % 2 :: 2].flatten()
        x = (decoded[keep] - 0.4) / 0.25
        if step < reached[0]:
            optimizer.zero_grad()
            F.cross_entropy(network(x.detach()), labels[keep]).backward()
            optimizer.step()
        else:
            inner = F.cross_entropy(torch.func.functional_call(network, parameters, (x,)), labels[keep])
            moved = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
            parameters = {n: p - 0.3 * g for (n, p), g in zip(parameters.items(), moved, strict=True)}
    real, target = objective._real(state)
    outer = F.cross_entropy(torch.func.functional_call(network, parameters, (real,)), target)
    torch.testing.assert_close(loss, outer.detach())
    torch.testing.assert_close(gradients["canvases"], torch.autograd.grad(outer, images)[0])


def test_a_window_over_everything_is_the_whole(unrolled_state):
    (_, whole), (_, windowed) = (losses_and_gradients(*unrolled_state(window=w)) for w in (None, 4))
    torch.testing.assert_close(whole, windowed, rtol=0, atol=0)


def saved_bytes(loss):
    """Bytes of distinct tensors that the graph behind ``loss`` keeps for its backward pass."""
    seen, kept, queue = set(), {}, [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for value in [*values, *getattr(node, "saved_tensors", ())]:
            for tensor in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"learn_labels": True}, {"window": 3}], ids=str)
def test_bounded_memory_gives_the_unbounded_result(options, unrolled_state):
    options = {"passes": 4, "steps": 1} | options
    results = []
    for recompute in (True, False):
        objective, state = unrolled_state(recompute=recompute, augmentation="color_crop", **options)
        results.append((*losses_and_gradients(objective, state), saved_bytes(next(objective.losses(state))[1])))
    (loss, gradients, bounded), (loss_again, gradients_again, unbounded) = results
    torch.testing.assert_close(loss, loss_again, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, gradients_again, rtol=1e-9, atol=1e-15)
    assert bounded < unbounded / 3


def test_rates_stay_positive_and_are_given_away_as_used(unrolled_state):
    objective, state = unrolled_state(learn_labels=True)
    state.synthetic.extras["step_sizes"].data[0] = -50.0
    given = objective.finish(state.synthetic)
    assert 0 < given.extras["step_sizes"][0] < 1e-20
    torch.testing.assert_close(given.extras["step_sizes"][1:], torch.full((3,), 0.3, dtype=torch.float64))
    assert set(given.extras) == {"step_sizes"}
    assert given.info["unrolled"] == {"steps": 2, "passes": 2, "optimizer": "sgd", "step_size": 0.3}
    torch.testing.assert_close(given.soft_labels.max(1).values, torch.full((24,), 0.9, dtype=torch.float64))
    assert (given.stored_floats, given.learned_floats) == (6 * 64 + 24 * 3, 4)


def test_rates_may_stay_as_they_are(unrolled_state):
    (losses, gradients), (fixed, fewer) = (
        losses_and_gradients(*unrolled_state(learn_rates=learned)) for learned in (True, False)
    )
    assert set(gradients) - set(fewer) == {"step_sizes"}
    torch.testing.assert_close(fixed[0][1], losses[0][1], rtol=1e-12, atol=0)
    torch.testing.assert_close(fewer["canvases"], gradients["canvases"])
    objective, state = unrolled_state(learn_rates=False)
    assert objective.finish(state.synthetic).extras == {}


def test_real_images_are_augmented_one_by_one_where_asked(unrolled_state):
    objective, state = unrolled_state(augmentation="color", augment_real=True)
    (seen, labels), (plain, same) = (replace(objective, augment_real=a)._real(state) for a in (True, False))
    assert torch.equal(labels, same)
    # What color does to a grey image about its mean is a contrast, one in [0.5, 1.5] for the whole image.
    centred = [x - x.mean((1, 2, 3), keepdim=True) for x in (seen, plain)]
    contrast = (centred[0] / centred[1]).flatten(1)
    torch.testing.assert_close(contrast, contrast[:, :1].expand(-1, 64))
    assert len(contrast[:, 0].unique()) == len(contrast) and ((contrast > 0.5) & (contrast < 1.5)).all()


# ---- replay ---------------------------------------------------------------------------------------------------------


def unrolled_set(rng, info=None, **about):
    """Six canvases of three classes in float64, unrolled by two passes of two steps at rates of their own."""
    canvases = torch.randn(6, 1, 8, 8, generator=rng(3), dtype=torch.float64)
    about = {"steps": 2, "passes": 2, "optimizer": "sgd", "step_size": 0.25} | about
    info = {"unrolled": about, "augmentation": "none", "augmentation_mode": "idc", "bounded": False} | (info or {})
    rates = torch.tensor([0.3, 0.1, 0.2, 0.05], dtype=torch.float64)
    return SyntheticSet(canvases, torch.arange(3).repeat_interleave(2), 3, extras={"step_sizes": rates}, info=info)


@pytest.mark.parametrize("learned", [True, False])
def test_a_replay_is_softmax_regression_written_out(learned, rng, toy_info, float64):
    synthetic, network = unrolled_set(rng), Linear(64, 3)
    synthetic.extras = synthetic.extras if learned else {}
    x, w = synthetic.canvases.flatten(1).numpy(), np.zeros((3, 64))
    for step, rate in enumerate([0.3, 0.1, 0.2, 0.05] if learned else [0.25] * 4):
        mine = x[step % 2 :: 2]  # one image of each class a step, all in a pass
        odds = np.exp(mine @ w.T)
        w = w - rate * (odds / odds.sum(1, keepdims=True) - np.eye(3)).T @ mine / 3
    replay(network, synthetic, toy_info().unbounded(), float64, rng())
    np.testing.assert_allclose(network.weight.detach().numpy(), w, rtol=1e-12)


def test_a_replay_with_adam_is_torchs(rng, toy_info, tiny, float64):
    synthetic, ours = unrolled_set(rng, optimizer="adam", step_size=0.01), tiny(double=True)
    theirs, synthetic.extras = tiny(double=True), {}
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(theirs(synthetic.canvases[step % 2 :: 2]), torch.arange(3)).backward()
        optimizer.step()
    replay(ours, synthetic, toy_info().unbounded(), float64, rng())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_protocol_dd_replays_and_takes_nothing_else(rng, toy_info, toy_data, float64):
    """Epochs, rate and augmentation play no part; the set's own augmentation does, by a draw for each network."""
    info, against, synthetic = toy_info().unbounded(), toy_data(per_class=40), unrolled_set(rng)

    def accuracies(synthetic, **settings):
        settings = EvaluationParams(protocol="dd", repeats=3, **settings)
        return evaluate(
            synthetic, against, info, settings, ("convnet", {"width": 8}), float64, seed=0, split="validation"
        ).accuracies

    result = accuracies(synthetic)
    assert result == accuracies(synthetic, epochs=7, lr=0.9, batch=1, augmentation="none", cutmix=0.0)
    assert result != accuracies(unrolled_set(rng, {"augmentation": "color_crop_cutout"}))
    faster = replace(synthetic, extras={"step_sizes": 10 * synthetic.extras["step_sizes"]})
    assert result != accuracies(faster)
    with pytest.raises(ValueError, match=r"protocol 'dd' replays .* such as idc"):
        accuracies(replace(synthetic, info={}))


def test_a_replay_refuses_running_statistics(rng, toy_info, tiny, float64):
    with pytest.raises(ValueError, match=r"running statistics, .* another protocol"):
        replay(tiny(double=True, norm="batch"), unrolled_set(rng), toy_info().unbounded(), float64, rng())


def test_pixels_and_rates_learn(unrolled_state):
    """A few steps of Adam on one fixed real batch lower its loss: the sign of every gradient is right."""
    objective, state = unrolled_state(learn_labels=True, step_size=0.05)
    leaves = [state.synthetic.canvases, *state.synthetic.extras.values()]
    optimizer, losses = torch.optim.Adam(leaves, lr=0.03), []
    for _ in range(6):
        optimizer.zero_grad()
        ((_, loss),) = objective.losses(state)
        loss.backward(inputs=leaves)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "option steps of objective 'unrolled': Input should be greater than or equal to 1, got 0"),
        ({"window": 5}, "between 1 and steps · passes = 4"),
        ({"step_size": 0.0}, "option step_size .* greater than 0, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.make("unrolled", SMALL | options)
