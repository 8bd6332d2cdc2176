"""Learning rates, CutMix and two training steps against the released code of IDC, DC, DSA and MTT."""

import numpy as np
import pytest
import torch
from golden_numbers import FLOAT64, assert_near, convnet, golden, plain_info
from torch import nn

from dreamlib._engine.compiled_network import CompiledNetwork, weights_of
from dreamlib.training import cutmix as cutmix_module
from dreamlib.training.cutmix import CutMixDraw, cutmix, draw_cutmix
from dreamlib.training.schedules import idc_steps_lr, tenth_lr
from dreamlib.training.trainer import Trainer, TrainSettings, fit

# ---- learning rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1000, 300, 150, 30])
def test_idcs_rates(epochs):
    result = torch.tensor([idc_steps_lr(0.01, epoch, epochs) for epoch in range(epochs)], dtype=torch.float64)
    assert_near(result, golden("schedules")[f"idc.epochs{epochs}"], 1e-12)


TENTH = [  # the released loops run one epoch more than their name says: ours is told the real number
    ("dc.epochs300.rate0.01", 0.01, 301),
    ("dsa_dm.epochs1000.rate0.01", 0.01, 1001),
    ("mtt.epochs1000.rate0.01", 0.01, 1001),
    ("mtt.epochs1000.rate0.0273", 0.0273, 1001),
]


@pytest.mark.parametrize(("name", "rate", "epochs"), TENTH)
def test_the_rates_of_dc_and_its_successors(name, rate, epochs):
    result = torch.tensor([tenth_lr(rate, epoch, epochs) for epoch in range(epochs)], dtype=torch.float64)
    assert_near(result, golden("schedules")[name], 1e-12)


class OneWeight(nn.Module):
    """Logits ±(w · pixel) of two classes: the gradient of the mean cross-entropy can be written down."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def features(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.features(x) * torch.stack([-self.weight, self.weight])


@pytest.mark.parametrize(("name", "rate", "epochs"), [TENTH[0], TENTH[3]])
def test_momentum_begins_at_zero_where_the_rate_drops(name, rate, epochs):
    """A step of a new optimiser is the rate times the gradient; later ones carry earlier gradients with them."""
    image, label = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0])
    network, info = OneWeight(), plain_info(image, 2)
    path = [0.0]
    fit(
        network, image, label, info, TrainSettings(lr=rate, momentum=0.9, weight_decay=0.0),
        CompiledNetwork(network, FLOAT64), epochs=epochs, seed=0, schedule=tenth_lr,
        on_epoch=lambda: path.append(network.weight.item()),
    )  # fmt: skip
    weights, rates = torch.tensor(path, dtype=torch.float64), golden("schedules")[name]
    gradients = 2 * (2 * weights[:-1]).sigmoid()  # of log(1 + exp(2 w))
    alone = (weights.diff() + rates * gradients).abs() < 1e-9 * rates * gradients
    (drop,) = golden("schedules")[f"{name}.new_optimizer_from"].tolist()
    assert alone.nonzero().flatten().tolist() == [0, drop]


# ---- CutMix ---------------------------------------------------------------------------------------------------------


class RecordedNumbers:
    """A generator of numpy that gives a recorded share, then a recorded centre's row and column."""

    def __init__(self, share, centre):
        self.share, self.centre = share, list(centre)

    def beta(self, a, b):
        return self.share

    def integers(self, high):
        assert self.centre[0] < high
        return self.centre.pop(0)


def test_boxes_about_recorded_centres(monkeypatch):
    numbers = golden("schedules", "cutmix.")
    rows = zip(numbers["boxes"].tolist(), numbers["lambda"].tolist(), numbers["kept"].tolist(), strict=True)
    for (height, width, *centre, top, left, bottom, right), share, kept in rows:
        with monkeypatch.context() as patch:
            recorded = RecordedNumbers(share, centre)
            patch.setattr(np.random, "default_rng", lambda seed, recorded=recorded: recorded)
            drawn = draw_cutmix(5, (height, width), torch.Generator(), probability=1.0)
        assert drawn.box == (top, bottom, left, right)
        assert drawn.lam == pytest.approx(kept, abs=1e-15)
        assert not recorded.centre


# ---- a training step ------------------------------------------------------------------------------------------------


@pytest.fixture
def images():
    return golden("schedules")["step.images"]


@pytest.fixture
def labels():
    return golden("schedules")["step.labels"]


@pytest.fixture
def network(images):
    return convnet(golden("schedules", "step.before."), plain_info(images, 10))


@pytest.fixture
def recorded_step(monkeypatch):
    """number → the loss before a step and the weights after it; CutMix will then draw what that step drew."""

    def prepare(number):
        numbers = {name: golden("schedules")[f"step.{name}"][number] for name in ("box", "partner", "kept", "loss")}
        top, left, bottom, right = numbers["box"].tolist()
        drawn = CutMixDraw((top, bottom, left, right), numbers["partner"], numbers["kept"].item())
        monkeypatch.setattr(cutmix_module, "draw_cutmix", lambda *_: drawn)
        return numbers["loss"], golden("schedules", f"step.after{number + 1}.")

    return prepare


def assert_weights(network, expected):
    """Compare all parameters, in the order of the layers."""
    layers = ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "linear")
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    for name, parameter in zip(names, network.parameters(), strict=True):
        assert_near(parameter, expected[name], 1e-9)


def test_loss_and_gradient_of_two_mixed_batches(images, labels, network, recorded_step):
    kernels = CompiledNetwork(network, FLOAT64)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    for number in (0, 1):
        expected, after = recorded_step(number)
        x, own, other, kept = cutmix(images, labels, torch.Generator())
        share = torch.tensor(kept, dtype=torch.float64)
        gradients, loss = kernels.training_gradient(weights_of(network), x, own, other, share)
        assert_near(loss, expected, 1e-9)
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()
        assert_weights(network, after)


def test_two_steps_of_the_trainer(images, labels, network, recorded_step):
    settings = TrainSettings(lr=0.01, momentum=0.9, weight_decay=5e-4, cutmix=1.0)
    trainer = Trainer(network, plain_info(images, 10), settings, CompiledNetwork(network, FLOAT64))
    for number in (0, 1):
        expected, after = recorded_step(number)
        assert_near(trainer.step(images, labels, torch.Generator()), expected, 1e-9)
        assert_weights(network, after)
