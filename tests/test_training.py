"""Training against torch.optim loops written here; predictions against the network itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import MultiStepLR

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.matching.ridge import ridge_predictions
from dreamlib.networks import NETWORKS, build
from dreamlib.training import features as features_module
from dreamlib.training import trainer as trainer_module
from dreamlib.training.augment import Augmentation, augmentation_for
from dreamlib.training.cutmix import cutmix
from dreamlib.training.features import accuracy, embed, fit_last_layer, last_linear, predict
from dreamlib.training.schedules import idc_steps_lr
from dreamlib.training.trainer import Trainer, TrainSettings, fit, train_on_real

PLAIN = TrainSettings(batch=8, lr=0.05, momentum=0.9, weight_decay=5e-4)


@pytest.fixture
def toys(toy_info, toy_data, tiny):
    """(info, data, network, kernels) of 3 classes, in float32."""

    def make(per_class=12, norm="instance", seed=0):
        info = toy_info()
        network = tiny(info, seed=seed, norm=norm)
        return info, toy_data(per_class=per_class), network, CompiledNetwork(network, Compute())

    return make


# ---- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "first", "second"), [(1000, 666, 833), (300, 200, 250), (100, 66, 83), (10, 6, 8), (6, 4, 5)]
)
def test_rates_of_idcs_schedule_by_hand(epochs, first, second):
    rates = [idc_steps_lr(0.01, epoch, epochs) for epoch in range(epochs)]
    expected = [0.01] * first + [0.002] * (second - first) + [0.0004] * (epochs - second)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50])
def test_the_schedule_is_torchs_multi_step(epochs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    reference = MultiStepLR(optimizer, milestones=[2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    for epoch in range(epochs):
        assert idc_steps_lr(0.01, epoch, epochs) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


# ---- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_steps_without_augmentation_are_torchs_sgd(toys, soft):
    info, data, network, kernels = toys()
    mine, reference = network, copy.deepcopy(network)
    labels = F.one_hot(data.labels, 3) * 0.7 + 0.1 if soft else data.labels
    trainer, rng = Trainer(mine, info, PLAIN, kernels), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for start in (0, 8, 16, 3):
        images, targets = data.images[start : start + 8], labels[start : start + 8]
        loss = trainer.step(images, targets, rng)
        expected = F.cross_entropy(reference((images - info.mean[0]) / info.std[0]), targets)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
        assert not loss.requires_grad
    for (name, p), q in zip(mine.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


def test_batch_norm_statistics_move_as_in_torch(toys):
    info, data, network, kernels = toys(norm="batch")
    reference = copy.deepcopy(network).train()
    Trainer(network, info, PLAIN, kernels).step(data.images, data.labels, torch.Generator())
    reference((data.images - info.mean[0]) / info.std[0])
    for (name, mine), other in zip(network.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_cutmix_weighs_the_two_labels_by_their_pixels(toys, monkeypatch):
    info, data, network, kernels = toys()
    images, labels = data.images[:6], data.labels[:6]
    mixed, others = images.flip(0) * 0.5, labels.flip(0)

    def fixed(x, a, rng, probability):
        assert probability == 0.7
        return mixed, a, others, 0.25

    monkeypatch.setattr(trainer_module, "cutmix", fixed)
    settings = TrainSettings(batch=6, cutmix=0.7)
    with torch.no_grad():
        logits = network(mixed)
        expected = 0.25 * F.cross_entropy(logits, labels) + 0.75 * F.cross_entropy(logits, others)
    loss = Trainer(network, info, settings, kernels).step(images, labels, torch.Generator())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("cut", [0.0, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_torchs(toys, soft, cut):
    info, data, network, kernels = toys()
    images, labels = data.images[:6], data.labels[:6]
    labels = F.one_hot(labels, 3) * 0.7 + 0.1 if soft else labels
    settings = TrainSettings(batch=6, cutmix=cut)
    rng = torch.Generator().manual_seed(4)
    settings.augmentation.draw(6, tuple(images.shape[1:]), rng)  # draws, even for no augmentation, come first
    x, a, b, lam = cutmix(info.normalise(images), labels, rng, probability=cut)
    assert (lam < 1) == bool(cut)
    with torch.no_grad():
        asked = [F.cross_entropy(network(x), y) for y in (a, b)]
    loss = Trainer(network, info, settings, kernels).step(images, labels, torch.Generator().manual_seed(4))
    torch.testing.assert_close(loss, lam * asked[0] + (1 - lam) * asked[1])


def test_normalised_first_then_augmented_one_draw_an_image(toys, monkeypatch):
    info, data, network, kernels = toys()
    seen = []

    def spy(self, images, draw):
        seen.append((images.clone(), draw.count))
        return images

    monkeypatch.setattr(Augmentation, "apply", spy)
    settings = TrainSettings(augmentation=Augmentation.parse("color_crop"))
    Trainer(network, info, settings, kernels).step(data.images[:5], data.labels[:5], torch.Generator())
    ((images, count),) = seen
    assert count == 5
    torch.testing.assert_close(images, (data.images[:5] - info.mean[0]) / info.std[0])


def test_mirrors_are_left_out_where_they_change_the_class(toy_info):
    info = toy_info()
    assert not info.flip
    assert augmentation_for(info, "flip_color_crop").ops == ("color", "crop")


# ---- fit ------------------------------------------------------------------------------------------------------------


def test_fit_shows_every_image_once_an_epoch_at_the_scheduled_rate(toys, monkeypatch):
    info, data, network, kernels = toys(per_class=7)  # 21 images: batches of 8, 8 and 5
    shown, ticks, original = [], [], Trainer.step

    def spy(self, images, labels, rng):
        shown.append((images, labels, self.optimizer.param_groups[0]["lr"]))
        return original(self, images, labels, rng)

    monkeypatch.setattr(Trainer, "step", spy)
    fit(network, data.images, data.labels, info, PLAIN, kernels, epochs=6, seed=0, on_epoch=lambda: ticks.append(1))
    assert len(ticks) == 6
    assert [len(labels) for _, labels, _ in shown] == [8, 8, 5] * 6
    assert [lr for *_, lr in shown] == pytest.approx([0.05] * 12 + [0.01] * 3 + [0.002] * 3)
    orders = []
    for epoch in range(6):
        images = torch.cat([images for images, *_ in shown[3 * epoch : 3 * epoch + 3]])
        labels = torch.cat([labels for _, labels, _ in shown[3 * epoch : 3 * epoch + 3]])
        rows = [next(i for i in range(21) if torch.equal(data.images[i], image)) for image in images]
        assert sorted(rows) == list(range(21))
        assert torch.equal(labels, data.labels[rows])
        orders.append(tuple(rows))
    assert len(set(orders)) == 6


def test_fit_returns_the_last_epochs_mean_loss_before_each_step(toys, monkeypatch):
    info, data, network, kernels = toys()
    losses, original = [], Trainer.step

    def spy(*arguments):
        losses.append(original(*arguments))
        return losses[-1]

    monkeypatch.setattr(Trainer, "step", spy)
    last = fit(network, data.images, data.labels, info, PLAIN, kernels, epochs=3, seed=0)
    assert len(losses) == 15
    assert last == pytest.approx(sum(map(float, losses[-5:])) / 5)


def test_fit_follows_its_seed_alone(toys, global_generators_untouched):
    settings = TrainSettings(batch=8, augmentation=Augmentation.parse("color_crop_cutout"), cutmix=0.5)

    def trained(seed):
        info, data, network, kernels = toys()
        fit(network, data.images, data.labels, info, settings, kernels, epochs=2, seed=seed)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


@pytest.mark.parametrize(("epochs", "clean_share", "first"), [(8, 0.25, 6), (8, 0.0, 8), (3, 1.0, 0), (10, 0.3, 7)])
def test_fit_finishes_on_mirror_images_alone(toys, monkeypatch, epochs, clean_share, first):
    info, data, network, kernels = toys()
    seen, original = [], Trainer.step

    def spy(self, *given):
        seen.append((self.settings.augmentation.ops, self.settings.cutmix))
        return original(self, *given)

    monkeypatch.setattr(Trainer, "step", spy)
    settings = TrainSettings(36, augmentation=Augmentation.parse("flip_color_crop"), cutmix=0.5)
    fit(network, data.images, data.labels, info, settings, kernels, epochs=epochs, seed=0, clean_share=clean_share)
    usual, last = (("flip", "color", "crop"), 0.5), (("flip",), 0.0)
    assert seen == [usual] * first + [last] * (epochs - first)


@pytest.mark.parametrize(("epochs", "steps"), [(2.0, 4), (0.5, 1), (0.01, 1)])
def test_training_on_real_images_is_passes_of_color_crop_and_cutmix(toys, monkeypatch, epochs, steps):
    """300 images: two batches of 128 a pass, no image twice in one, and at least one step."""
    info, data, network, kernels = toys(per_class=100)
    shown, original = [], Trainer.step

    def spy(self, images, labels, rng):
        shown.append((images, self.settings))
        return original(self, images, labels, rng)

    monkeypatch.setattr(Trainer, "step", spy)
    train_on_real(network, data, info, kernels, epochs=epochs, seed=0)
    assert [len(images) for images, _ in shown] == [128] * steps
    for pair in zip(shown[::2], shown[1::2], strict=False):
        assert len(torch.cat([images for images, _ in pair]).unique(dim=0)) == 256
    settings = shown[0][1]
    assert (settings.lr, settings.momentum, settings.weight_decay, settings.cutmix) == (0.01, 0.9, 5e-4, 0.5)
    assert settings.augmentation == Augmentation.parse("color_crop")


def test_fit_learns_digits(digits, tiny):
    from dreamlib.data import info as info_of

    info = info_of("digits")
    network = tiny(info)
    kernels = CompiledNetwork(network, Compute())
    settings = TrainSettings(batch=64, lr=0.05)
    before = accuracy(predict(network, digits.images, info, kernels), digits.labels)
    fit(network, digits.images, digits.labels, info, settings, kernels, epochs=4, seed=0)
    assert before < 0.3
    assert accuracy(predict(network, digits.images, info, kernels), digits.labels) > 0.9


# ---- predictions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("per_class", "penalty"), [(3, 0.5), (3, 1e-3), (40, 0.1)])  # features: 64 of them
def test_a_last_layer_fitted_by_ridge_predicts_as_the_objective_does(toys, per_class, penalty, soft):
    """scikit-learn's primal or dual solution, in the network, beside the objective's own dual one in float64."""
    info, data, network, kernels = toys(per_class=per_class)
    labels = 0.2 / 3 + 0.8 * F.one_hot(data.labels, 3).float() if soft else data.labels
    targets = (labels if soft else F.one_hot(labels, 3)).double() - 1 / 3
    asked = torch.rand(10, *data.images.shape[1:])
    body = {name: tensor.clone() for name, tensor in network.state_dict().items() if "classifier" not in name}
    support, features = (embed(network, x, info, kernels).double() for x in (data.images, asked))
    expected = ridge_predictions(support, targets, features, penalty)
    fit_last_layer(network, data.images, labels, info, kernels, penalty)
    assert torch.allclose(predict(network, asked, info, kernels).double(), expected, atol=1e-5)
    assert expected.abs().max() > 0.01
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in body.items())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_last_linear_layer_turns_features_into_logits(toy_info, name):
    info = toy_info(size=32)
    network = build(name, info, torch.Generator().manual_seed(0)).eval()
    x = torch.rand(2, info.channels, info.size, info.size)
    with torch.no_grad():
        assert torch.allclose(last_linear(network)(network.features(x)), network(x), atol=1e-6)


def test_a_network_without_a_last_linear_layer_is_refused():
    with pytest.raises(ValueError, match="Flatten has none: use last_layer: trained"):
        last_linear(torch.nn.Flatten())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("size", [1, 7, 36, 50])
def test_predictions_do_not_depend_on_batches_or_padding(toys, monkeypatch, size, norm):
    info, data, network, kernels = toys(norm=norm)
    Trainer(network, info, PLAIN, kernels).step(data.images, data.labels, torch.Generator())  # statistics of its own
    monkeypatch.setattr(features_module, "PREDICT_BATCH", size)
    network.eval()
    with torch.no_grad():
        x = (data.images - info.mean[0]) / info.std[0]
        one_by_one = torch.cat([network(row[None]) for row in x])
        features = torch.cat([network.features(row[None]) for row in x])
    got = predict(network, data.images, info, kernels)
    torch.testing.assert_close(got, one_by_one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embed(network, data.images, info, kernels), features, rtol=1e-5, atol=1e-5)
    assert not got.requires_grad


def test_predictions_and_features_are_of_the_network_as_it_is_now(toys):
    """One CompiledNetwork object serves many networks: its template's weights are never used."""
    info, data, network, kernels = toys()
    _, _, other, _ = toys(seed=1)
    x = (data.images - info.mean[0]) / info.std[0]
    with torch.no_grad():
        expected = other.eval()(x)
    torch.testing.assert_close(predict(other, data.images, info, kernels), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(predict(network, data.images, info, kernels), expected)


def test_half_precision_predictions_come_back_wide(toys):
    info, data, network, _ = toys()
    half = CompiledNetwork(network, Compute(dtype=torch.bfloat16))
    full = CompiledNetwork(network, Compute())
    for ask in (predict, embed):
        got, expected = ask(network, data.images, info, half), ask(network, data.images, info, full)
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.05 * expected.norm()


def test_accuracy_counts_argmax_hits():
    logits = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 3.0], [0.0, 0.0, -1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2])) == pytest.approx(1 / 3)
    assert accuracy(logits, torch.tensor([1, 2, 0])) == 1.0
