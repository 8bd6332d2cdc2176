"""From a set to an accuracy: protocols by hand, one evaluation against a plain training loop, the views."""

import pytest
import torch
from torch.nn import functional as F

from dreamlib.compute import Compute
from dreamlib.evaluate import curve, evaluate, seen_as, train_settings
from dreamlib.networks import build
from dreamlib.params import PROTOCOLS, EvaluationParams
from dreamlib.seeding import derive, generator
from dreamlib.synthetic import SyntheticSet
from dreamlib.training import SCHEDULES

NETWORK = ("convnet", {"width": 8})


@pytest.fixture
def synthetic(toy_data):
    """Two canvases for each of three classes, with soft labels and a learned step size."""
    real = toy_data(per_class=2, seed=5)
    canvases = real.images[real.labels.argsort(stable=True)]
    soft = torch.full((6, 3), 0.1) + 0.7 * F.one_hot(torch.arange(3).repeat_interleave(2), 3)
    labels = torch.arange(3).repeat_interleave(2)
    return SyntheticSet(canvases, labels, 3, soft_labels=soft, extras={"step_size": torch.tensor(0.03)})


# name → epochs, batch, augmentation, mode, CutMix, decay: the published evaluations
BY_HAND = {
    "idc": (1000, 64, "flip_color_crop_scale_rotate", "idc", 0.5, "fifths"),
    "dc": (300, 256, "none", "idc", 0.0, "tenth"),
    "dsa": (1000, 256, "flip_color_crop_scale_rotate_cutout", "dsa", 0.0, "tenth"),
    "dm": (1000, 256, "flip_color_crop_scale_rotate_cutout", "dsa", 0.0, "tenth"),
    "mtt": (1000, 256, "flip_color_crop_scale_rotate_cutout", "dsa", 0.0, "tenth"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_the_published_ones(name):
    p = EvaluationParams(protocol=name)
    assert (p.epochs, p.batch, p.augmentation, p.augmentation_mode, p.cutmix, p.decay) == BY_HAND[name]
    assert (p.lr, p.momentum, p.weight_decay, p.learned_lr) == (0.01, 0.9, 5e-4, name == "mtt")


def test_keys_beside_a_protocol_win_and_an_unknown_one_is_named():
    assert EvaluationParams(protocol="dc", epochs=7).epochs == 7
    with pytest.raises(ValueError, match="did you mean 'dsa'"):
        EvaluationParams(protocol="dsaa")


def test_networks_may_be_names_or_names_with_options():
    listed = EvaluationParams(networks=["mlp", {"name": "convnet", "options": {"norm": "batch"}}]).networks
    assert [n.label for n in listed] == ["mlp", "convnet (norm batch)"]
    assert EvaluationParams(networks="mlp").networks[0].name == "mlp"


def test_schedules_by_hand():
    assert [SCHEDULES["fifths"](1.0, e, 6) for e in range(6)] == pytest.approx([1, 1, 1, 1, 0.2, 0.04])
    assert [SCHEDULES["tenth"](1.0, e, 6) for e in range(6)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1])
    assert [SCHEDULES["none"](1.0, e, 6) for e in range(6)] == [1] * 6


def test_views_change_what_they_name_and_nothing_else(synthetic, toy_info):
    how = EvaluationParams()
    seen, plain = seen_as("plain", synthetic, how)
    settings = train_settings(toy_info(), plain, seen)
    assert seen is synthetic and settings.augmentation.ops == () and settings.cutmix == 0.0
    assert plain.model_dump(exclude={"augmentation", "cutmix"}) == how.model_dump(exclude={"augmentation", "cutmix"})
    hard, same = seen_as("hard_labels", synthetic, how)
    assert hard.soft_labels is None and same is how and synthetic.soft_labels is not None
    assert seen_as("protocol", synthetic, how) == (synthetic, how)


def test_the_learned_step_size_is_used_where_the_protocol_says_so(synthetic, toy_info):
    assert train_settings(toy_info(), EvaluationParams(protocol="mtt"), synthetic).lr == pytest.approx(0.03)
    assert train_settings(toy_info(), EvaluationParams(protocol="dsa"), synthetic).lr == 0.01


def plain_accuracy(synthetic, against, info, how, own, soft):
    """One network trained and asked by nothing but torch: full batches, no augmentation."""
    network = build(*NETWORK[:1], info, generator(own, "network"), NETWORK[1]).double()
    optimizer = torch.optim.SGD(network.parameters(), how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [how.epochs * 2 // 3, how.epochs * 5 // 6], 0.2)
    x, y = info.normalise(synthetic.canvases.double()), synthetic.soft_labels.double() if soft else synthetic.labels
    for _ in range(how.epochs):
        optimizer.zero_grad()
        F.cross_entropy(network.train()(x), y).backward()
        optimizer.step()
        scheduler.step()
    right = network.eval()(info.normalise(against.images.double())).argmax(1) == against.labels
    return right.double().mean().item()


@pytest.mark.parametrize("soft", [True, False])
def test_an_evaluation_is_what_a_plain_loop_gives(soft, synthetic, toy_info, toy_data):
    info, against = toy_info(), toy_data(per_class=40)
    how = EvaluationParams(augmentation="none", cutmix=0.0, epochs=12, batch=64, repeats=2, lr=0.05)
    seen, _ = seen_as("protocol" if soft else "hard_labels", synthetic, how)
    compute = Compute(torch.device("cpu"), torch.float64)
    found = evaluate(seen, against, info, how, NETWORK, compute, seed=3, split="validation")
    expected = [plain_accuracy(synthetic, against, info, how, derive(3, "evaluation", i), soft) for i in range(2)]
    assert found.accuracies == pytest.approx(expected, abs=1e-12)
    assert found.mean == pytest.approx(sum(expected) / 2) and found.epochs == 12 and found.split == "validation"
    assert 1 / 3 < found.mean < 1, "the task must be able to tell a right from a wrong loop"


def test_a_curve_evaluates_the_canvases_of_each_snapshot(synthetic, toy_info, toy_data):
    info, against = toy_info(), toy_data(per_class=40)
    how = EvaluationParams(curve_networks=1, curve_epochs=30, lr=0.05)
    compute = Compute(torch.device("cpu"), torch.float32)
    snapshots = {8: synthetic.canvases, 0: torch.full_like(synthetic.canvases, 0.5)}
    points = list(curve(synthetic, snapshots, against, info, how, NETWORK, compute, seed=0))
    assert [iteration for iteration, _ in points] == [0, 8]
    again = evaluate(synthetic, against, info, how, NETWORK, compute, seed=0, split="v", repeats=1, epochs=30)
    assert points[1][1].accuracies == again.accuracies and points[1][1].epochs == 30
    assert points[0][1].mean < 0.5 < points[1][1].mean, "equal canvases cannot tell classes apart"
