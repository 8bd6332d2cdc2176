"""Gradient matching against a plain loop and its finite differences; distances by hand."""

import pytest
import torch
import torch.nn.functional as F

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.errors import UnknownNameError
from dreamlib.matching import MatchState, make
from dreamlib.matching.distribution import squared
from dreamlib.matching.gradient import DISTANCES, absolute, matched_weights, row_cosine
from dreamlib.sampling.real_batches import RandomSampler
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation


@pytest.fixture
def state_of(toy_info, toy_data, tiny, float64):
    """A matching state on toys: K = 3 classes, two canvases each at factor 2, a width-8 ConvNet."""

    def make_state(compute=None, augmentation="none", network=None, ipc=2, iteration=0, synthetic_batch=128, **options):
        compute, info = compute or float64, toy_info()
        dtype = torch.float64 if compute.dtype == torch.float64 else torch.float32
        data = toy_data(per_class=7, dtype=dtype)
        start = torch.rand(3 * ipc, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
        labels = torch.arange(3).repeat_interleave(ipc)
        synthetic = SyntheticSet(start.requires_grad_(), labels, 3, factor=2)
        network = network or compute.place(tiny(info, **options))
        sampler = RandomSampler(data, 5, seed=1)
        parsed = Augmentation.parse(augmentation)
        kernels = CompiledNetwork(network, compute)
        return MatchState(synthetic, network, kernels, sampler, info, parsed, 0, iteration, synthetic_batch)

    return make_state


# ---- distances by hand ----------------------------------------------------------------------------------------------

REAL = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).view(2, 1, 1, 2)
OURS = torch.tensor([[4.0, 3.0], [0.0, 2.0]]).view(2, 1, 1, 2)


def test_distances_by_hand():
    assert squared(REAL, OURS).item() == 1 + 1 + 1 + 4
    assert absolute(REAL, OURS).item() == 1 + 1 + 1 + 2
    # rows (3, 4)·(4, 3) = 24 of 25; (1, 0)·(0, 2) = 0. As one vector it would be 1 − 24 / √(26·29) = 0.126.
    assert row_cosine(REAL, OURS).item() == pytest.approx((1 - 24 / 25) + 1, rel=1e-5)


def test_cosine_sees_the_direction_of_each_row_only():
    scaled = OURS * torch.tensor([7.0, 0.1]).view(2, 1, 1, 1)
    assert row_cosine(REAL, scaled).item() == pytest.approx(row_cosine(REAL, OURS).item(), rel=1e-4)
    assert row_cosine(REAL, -REAL).item() == pytest.approx(4.0, rel=1e-5)
    assert row_cosine(REAL, 3 * REAL).item() == pytest.approx(0.0, abs=1e-5)


def test_cosine_of_a_row_without_gradient_is_finite():
    dead = torch.zeros(2, 3, requires_grad=True)
    row_cosine(torch.rand(2, 3), dead).backward()
    assert bool(dead.grad.isfinite().all())


# ---- the loss and its gradient, against a plain loop ----------------------------------------------------------------


def plain_distance(name, real, ours):
    if name == "cosine":
        pairs = zip(real.reshape(len(real), -1), ours.reshape(len(ours), -1), strict=True)
        return sum(1 - (a @ b) / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt() + 1e-6) for a, b in pairs)
    power = {"mse": 2, "l1": 1}[name]
    return sum((abs(a - b) ** power).sum() for a, b in zip(real, ours, strict=True))


def plain_decode(canvases):
    """Factor 2 by slices."""
    half = canvases.shape[2] // 2
    crops = [c[:, i : i + half, j : j + half] for c in canvases for i in (0, half) for j in (0, half)]
    return F.interpolate(torch.stack(crops), scale_factor=2, mode="bilinear", align_corners=False)


def plain_loss(state, canvases, label, distance, smallest):
    """The matching loss of one class by nn.Module and torch.autograd.grad; from pixels, differentiable in them."""
    mean, std = state.info.mean[0], state.info.std[0]
    weights = [p for p in state.network.parameters() if p.ndim >= smallest]
    draw = state.draw(label)

    def gradient(images, create_graph):
        x = state.augmentation.apply((images - mean) / std, draw)
        y = torch.full((len(x),), label)
        return torch.autograd.grad(F.cross_entropy(state.network(x), y), weights, create_graph=create_graph)

    rows = state.sampler.rows(label, state.iteration)
    real = [g.detach() for g in gradient(state.sampler.data.images[rows], False)]
    ours = gradient(plain_decode(canvases[2 * label : 2 * label + 2]), True)
    return sum(plain_distance(distance, a, b) for a, b in zip(real, ours, strict=True))


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout"])
@pytest.mark.parametrize("layers", ["conv", "conv_linear"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_and_pixel_gradient_equal_the_plain_loops_and_its_finite_differences(
    state_of, distance, layers, augmentation
):
    state = state_of(augmentation=augmentation)
    canvases, step = state.synthetic.canvases, 1e-6
    smallest = {"conv": 4, "conv_linear": 2}[layers]
    for label, loss in make("gradient", {"distance": distance, "layers": layers}).losses(state):
        plain = plain_loss(state, canvases, label, distance, smallest)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-10)
        (gradient,) = torch.autograd.grad(loss, canvases)
        (by_tape,) = torch.autograd.grad(plain, canvases)
        torch.testing.assert_close(gradient, by_tape, rtol=1e-8, atol=1e-12)
        assert gradient[2 * label : 2 * label + 2].abs().max() > 1e-6
        others = torch.ones(6, dtype=torch.bool)
        others[2 * label : 2 * label + 2] = False
        assert not gradient[others].any(), "a class's loss reaches its own canvases only"
        scale = float(gradient.abs().max())
        for row, i, j in ((2 * label, 1, 2), (2 * label, 6, 0), (2 * label + 1, 4, 7), (2 * label + 1, 3, 3)):
            with torch.no_grad():
                moved = [canvases.detach().clone() for _ in range(2)]
            moved[0][row, 0, i, j] += step
            moved[1][row, 0, i, j] -= step
            up, down = (plain_loss(state, m, label, distance, smallest).item() for m in moved)
            assert gradient[row, 0, i, j].item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6 * scale)


def test_only_convolution_weights_are_matched(tiny):
    network = tiny()
    matched, fixed = matched_weights(network, "conv")
    assert set(matched) == {"blocks.0.conv.weight", "blocks.1.conv.weight"}
    assert {*matched, *fixed} == {name for name, _ in network.named_parameters()}
    both, _ = matched_weights(network, "conv_linear")
    assert set(both) == set(matched) | {"classifier.weight"}
    assert not any(w.requires_grad for w in (*matched.values(), *fixed.values(), *both.values()))


def test_a_network_without_convolutions_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="conv_linear"):
        matched_weights(torch.nn.Linear(3, 2), "conv")


def test_both_sides_of_a_class_get_one_draw_and_classes_get_their_own(state_of, monkeypatch):
    state, seen = state_of(augmentation="color_crop_cutout", iteration=4), []
    original = Augmentation.apply

    def spy(self, images, draw):
        seen.append((len(images), draw))
        return original(self, images, draw)

    monkeypatch.setattr(Augmentation, "apply", spy)
    list(make("gradient", {}).losses(state))
    pairs = [seen[i : i + 2] for i in range(0, 6, 2)]
    values = []
    for (n_real, real), (n_ours, ours) in pairs:
        assert (n_real, n_ours) == (5, 8)
        assert real.count == ours.count == 1, "one draw for the whole batch"
        assert all(torch.equal(real.values[op], ours.values[op]) for op in real.values)
        values.append(real.values["color"])
    assert not torch.equal(values[0], values[1])
    again = state_of(augmentation="color_crop_cutout", iteration=5).draw(0).values["color"]
    assert not torch.equal(again, values[0]), "another iteration, another draw"


def test_a_set_that_matches_its_real_batch_has_no_distance(state_of):
    """Canvases that are the real images: every gradient is met exactly, whatever the augmentation."""
    for distance in DISTANCES:
        state = state_of(augmentation="color_crop_cutout")
        rows = torch.cat([state.sampler.rows(label, 0) for label in range(3)])
        images = state.sampler.data.images[rows].clone().requires_grad_()
        state.synthetic = SyntheticSet(images, torch.arange(3).repeat_interleave(5), 3, factor=1)
        losses = [loss.item() for _, loss in make("gradient", {"distance": distance}).losses(state)]
        # DC's 1e-6 under the fraction leaves the cosine of small gradients a little short of 1
        assert losses == pytest.approx([0.0] * 3, abs=5e-3 if distance == "cosine" else 1e-18)


def test_synthetic_batch_takes_a_random_part_of_the_decoded_images(state_of):
    state = state_of(ipc=3, synthetic_batch=5)
    whole, part = state.synthetic.decode_class(1), state.synthetic_images(1)
    places = [next(i for i, image in enumerate(whole) if torch.equal(image, one)) for one in part]
    assert len(places) == len(set(places)) == 5
    state.iteration = 1
    assert not torch.equal(state.synthetic_images(1), part)
    assert len(state_of(ipc=3, synthetic_batch=12).synthetic_images(1)) == 12


def test_options_are_checked():
    with pytest.raises(UnknownNameError, match="did you mean 'mse'"):
        make("gradient", {"distance": "mes"})
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        make("gradient", {"layers": "con"})
    with pytest.raises(UnknownNameError, match="did you mean 'distance'"):
        make("gradient", {"distanc": "mse"})
    with pytest.raises(UnknownNameError, match="did you mean 'gradient'"):
        make("gradinet", {})


# ---- what gradient matching may not touch (tests/test_objectives_contract.py asks the same of every objective) -------


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_network_data_canvases_and_generators_stay_as_they_were(norm, state_of, global_generators_untouched):
    """A batch norm's running statistics are part of the network: matching may not move them."""
    state = state_of(Compute(), augmentation="color_crop_cutout", norm=norm)
    watched = dict(state.network.state_dict())
    watched |= {"images": state.sampler.data.images, "labels": state.sampler.data.labels}
    watched["canvases"] = state.synthetic.canvases
    before = {key: value.detach().clone() for key, value in watched.items()}
    modes = [module.training for module in state.network.modules()]
    for _, loss in make("gradient", {}).losses(state):
        loss.backward(inputs=[state.synthetic.canvases])
    assert {key for key, value in watched.items() if not torch.equal(value.detach(), before[key])} == set()
    assert [module.training for module in state.network.modules()] == modes
    assert all(p.grad is None for p in state.network.parameters())
