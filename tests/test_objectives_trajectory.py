"""Trajectory matching against two steps by hand in numpy; the experts it follows against torch.optim."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from test_objectives_contract import losses_and_gradients, make_state
from torch import nn

from dreamlib import matching as objectives
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import derive, generator
from dreamlib.matching.experts import FORMAT, ExpertError, Experts, expert_path, train_experts
from dreamlib.networks import build
from dreamlib.settings import ExpertParams
from dreamlib.training.augment import Augmentation

TINY = ("convnet", {"width": 8})
PLAIN = {"batch": 8, "epochs": 2, "lr": 0.1, "augmentation": "none"}
TWO_STEPS = {"synthetic_steps": 2, "expert_epochs": 2, "max_start": 1, "step_size": 0.5}


class Linear(nn.Module):
    """Softmax regression on the pixels: its gradient can be written down."""

    def __init__(self, pixels, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, pixels, dtype=torch.float64))

    def features(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.features(x) @ self.weight.T


def write_expert(folder, weights, name="toy"):
    about = {"format": FORMAT, "key": "by hand", "dataset": name, "network": ["linear", {}]}
    folder.mkdir(exist_ok=True)
    save_file({"weight": weights}, expert_path(folder, 0), {"dreamlib": json.dumps(about)})


@pytest.fixture
def by_hand(tmp_path, toy_info, toy_data, float64, rng):
    """Objective and state of a three-class linear network whose expert's three epochs are random numbers."""

    def make(**options):
        trajectory = torch.randn(3, 3, 64, generator=rng(5), dtype=torch.float64) * 0.1
        write_expert(tmp_path / "experts", trajectory)
        objective = objectives.make("trajectory", TWO_STEPS | {"experts": str(tmp_path / "experts")} | options)
        info, data = toy_info(), toy_data(dtype=torch.float64)
        none = Augmentation.parse("none")
        state = make_state(objective, data, info, Linear(64, 3), compute=float64, augmentation=none)
        return objective, state, trajectory.numpy()

    return make


def two_steps(x, y, trajectory, rate):
    """The loss, in numpy: x (n, 64) normalised, y (n,)."""
    w, hot = trajectory[0], np.eye(3)[y]
    for _ in range(2):
        odds = np.exp(x @ w.T)
        w = w - rate * (odds / odds.sum(1, keepdims=True) - hot).T @ x / len(x)
    return ((w - trajectory[2]) ** 2).sum() / ((trajectory[0] - trajectory[2]) ** 2).sum()


@pytest.mark.parametrize("recompute", [True, False])
def test_two_steps_by_hand(recompute, by_hand):
    objective, state, trajectory = by_hand(recompute=recompute)
    ((label, loss),), gradients = losses_and_gradients(objective, state)
    canvases = state.synthetic.canvases.detach().numpy()

    def wanted(pixel=0.0, rate=0.5):
        moved = canvases.copy()
        moved[4, 0, 2, 6] += pixel
        return two_steps((moved.reshape(6, 64) - 0.4) / 0.25, np.arange(3).repeat(2), trajectory, rate)

    assert label == -1
    assert float(loss) == pytest.approx(wanted(), rel=1e-12)
    of_pixel, of_rate = (wanted(1e-6) - wanted(-1e-6)) / 2e-6, (wanted(0, 0.5 + 1e-6) - wanted(0, 0.5 - 1e-6)) / 2e-6
    assert float(gradients["canvases"][4, 0, 2, 6]) == pytest.approx(of_pixel, rel=1e-6)
    assert float(gradients["step_size"]) == pytest.approx(of_rate, rel=1e-6)


def test_a_pass_takes_every_image_once_in_batches(by_hand):
    objective, state, _ = by_hand(batch=4, synthetic_steps=4)
    sizes = [len(labels) for _, labels in objective._batches(state)]
    assert sizes == [2, 4, 2, 4], "the released code takes the last part of an order first"
    x = torch.cat([x for x, _ in objective._batches(state)[:2]])
    decoded = state.info.normalise(state.synthetic.decode()[0])
    assert sorted(x.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(decoded.sum((1, 2, 3)).tolist()))


def test_bounded_memory_gives_the_unbounded_result(tmp_path, toy_info, toy_data, tiny, float64):
    """On a network with hidden layers, several experts and starting epochs, batches and augmentation."""
    info, data, results = toy_info(), toy_data(dtype=torch.float64), []
    train_experts(tmp_path, data, info, TINY, ExpertParams(count=2, **PLAIN), float64, seed=0)
    for recompute in (True, False):
        small = {"synthetic_steps": 5, "expert_epochs": 1, "max_start": 2, "batch": 5, "recompute": recompute}
        objective = objectives.make("trajectory", small | {"experts": str(tmp_path)})
        state = make_state(objective, data, info, tiny(info, double=True), factor=2, compute=float64)
        results.append(losses_and_gradients(objective, state))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-15)


def test_what_is_missing_or_wrong_is_named_with_the_remedy(by_hand, tmp_path, tiny, toy_info, monkeypatch):
    objective, state, _ = by_hand(max_start=2)
    with pytest.raises(ValueError, match="choose max_start ≤ 1, or train the experts longer"):
        next(objective.losses(state))
    objective, state, _ = by_hand()
    state.synthetic.extras["step_size"].data.fill_(-0.1)
    with pytest.raises(ValueError, match="lower learned_lr"):
        next(objective.losses(state))
    for folder, network, name, message in [
        (tmp_path / "nowhere", Linear(64, 3), "toy", "no expert trajectories .* `python -m pipeline.stages.experts`"),
        (tmp_path / "experts", Linear(64, 3), "other", "were trained on toy, not other"),
        (tmp_path / "experts", tiny(), "toy", "not the network in use"),
    ]:
        with pytest.raises(ExpertError, match=message):
            Experts.open(folder, network, toy_info(name=name))
    expert_path(tmp_path / "experts", 0).write_bytes(b"torn")
    with pytest.raises(ExpertError, match="not a complete expert trajectory"):
        Experts.open(tmp_path / "experts", Linear(64, 3), toy_info())
    # A relative folder is the project's, wherever one stands in it.
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    write_expert(tmp_path / "experts", torch.zeros(3, 3, 64, dtype=torch.float64))
    inside = objectives.make("trajectory", TWO_STEPS | {"experts": "experts"})
    assert inside._start_and_target(state)[0]["weight"].shape == (3, 64)


def test_experts_follow_torch_sgd(tmp_path, toy_info, toy_data, global_generators_untouched):
    info, data = toy_info(), toy_data(per_class=4)
    (path,) = train_experts(tmp_path, data, info, TINY, ExpertParams(count=1, **PLAIN), Compute(), seed=7)
    own = derive(7, "expert", 0)
    network = build(*TINY[:1], info, generator(own, "network"), TINY[1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with safe_open(path, "pt") as file:
        for epoch in range(3):
            for name, p in network.named_parameters():
                torch.testing.assert_close(file.get_slice(name)[epoch], p.detach(), rtol=0, atol=1e-6)
            order = torch.randperm(12, generator=generator(own, "fit", epoch))
            for rows in order.split(8):
                optimizer.zero_grad()
                F.cross_entropy(network(info.normalise(data.images[rows])), data.labels[rows]).backward()
                optimizer.step()
        file = Experts.open(tmp_path, network, info)
    assert file.epochs == 2


def test_experts_are_used_again_only_where_everything_is_the_same(tmp_path, toy_info, toy_data, monkeypatch):
    info, data = toy_info(), toy_data(per_class=4)
    settings = ExpertParams(count=2, **PLAIN)
    first = train_experts(tmp_path, data, info, TINY, settings, Compute(), seed=0)
    content = [path.read_bytes() for path in first]
    assert content[0] != content[1]

    def times():
        return [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*"))]

    before = times()
    train_experts(tmp_path, data, info, TINY, settings, Compute(), seed=0)
    assert times() == before
    first[0].write_bytes(b"torn")
    train_experts(tmp_path, data, info, TINY, settings, Compute(), seed=0)
    assert [path.read_bytes() for path in first] == content
    assert times()[1] == before[1]
    other = toy_data(per_class=4, seed=1)
    train_experts(tmp_path, other, info, TINY, ExpertParams(count=1, **PLAIN), Compute(), seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["expert-000.safetensors"]
    assert first[0].read_bytes() != content[0]
