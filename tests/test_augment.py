"""Augmentation against loops over pixels, torchvision and finite differences; CutMix against counted pixels."""

import math

import numpy as np
import pytest
import torch

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.errors import UnknownNameError
from dreamlib.training import augment
from dreamlib.training.augment import GEOMETRIC, OPS, Augmentation, AugmentationDraw
from dreamlib.training.cutmix import cutmix

ALL = "flip_color_crop_scale_rotate_cutout"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(*shape, seed=1):
    return torch.rand(*shape, generator=rng(seed))


def one(op, *values, size):
    """A draw of one op with chosen values, for the whole batch."""
    return AugmentationDraw(1, size, {op: torch.tensor([True])}, {op: torch.tensor([values], dtype=torch.float32)})


def run(op, x, *values):
    return Augmentation((op,)).apply(x, one(op, *values, size=tuple(x.shape[2:])))


def test_flip_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    assert run("flip", x).tolist() == [[[[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_color_is_brightness_then_saturation_then_contrast(channels):
    x, added, saturation, contrast = pixels(4, channels, 6, 5), 0.3, 1.7, 0.6
    for image, got in zip(x.numpy(), run("color", x, added, saturation, contrast).numpy(), strict=True):
        expected = image + added
        grey = expected.mean(0)
        expected = np.stack([(plane - grey) * saturation + grey for plane in expected])
        expected = (expected - expected.mean()) * contrast + expected.mean()
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("down", "right"), [(2, -1), (-3, 0), (0, 4), (0, 0)])
def test_crop_shifts_and_fills_with_zero(down, right):
    x = pixels(2, 3, 7, 6)
    expected = torch.zeros_like(x)
    for i in range(7):
        for j in range(6):
            if 0 <= i - down < 7 and 0 <= j - right < 6:
                expected[:, :, i, j] = x[:, :, i - down, j - right]
    assert torch.equal(run("crop", x, down, right), expected)


def bilinear(image, y, x):
    """One pixel read at a fractional place, zero outside."""
    total, top, left = 0.0, math.floor(y), math.floor(x)
    for i, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
        for j, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                total += wy * wx * image[i, j].item()
    return total


@pytest.mark.parametrize(("fx", "fy"), [(1.2, 0.9), (1 / 1.2, 1.1), (1.0, 1.0)])
def test_scale_is_bilinear_reading_from_the_centre(fx, fy):
    x = pixels(2, 3, 6, 8)
    got = run("scale", x, fx, 0, 0, fy)
    for n in range(2):
        for i in range(6):
            for j in range(8):
                y_in, x_in = (i - 2.5) * fy + 2.5, (j - 3.5) * fx + 3.5
                assert got[n, 1, i, j].item() == pytest.approx(bilinear(x[n, 1], y_in, x_in), abs=1e-5)


@pytest.mark.parametrize("degrees", [15.0, -7.0])
def test_rotation_is_torchvisions(degrees):
    x, a = pixels(3, 3, 16, 16), math.radians(degrees)
    got = run("rotate", x, math.cos(a), -math.sin(a), math.sin(a), math.cos(a))
    transforms = torchvision.transforms
    expected = transforms.functional.rotate(x, degrees, interpolation=transforms.InterpolationMode.BILINEAR)
    assert torch.allclose(got, expected, atol=1e-4)


def test_cutout_zeroes_the_clipped_square():
    got = run("cutout", torch.ones(2, 3, 6, 6), -1, 3, 2, 6)
    expected = torch.ones(6, 6)
    expected[0:2, 3:6] = 0
    assert torch.equal(got, expected.expand(2, 3, 6, 6))


@pytest.mark.parametrize("mode", ["idc", "dc"])  # one op for all images, and an op for each
@pytest.mark.parametrize("channels", [1, 3])
def test_one_draw_per_image_equals_the_loop(mode, channels):
    augmentation, x = Augmentation.parse(ALL, mode), pixels(64, channels, 16, 14)
    draw = augmentation.draw(64, (channels, 16, 14), rng())
    together = augmentation.apply(x, draw)
    apart = [augmentation.apply(x[i : i + 1], draw.take(torch.tensor([i]))) for i in range(64)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-6)
    assert len({round((a - b).abs().sum().item(), 4) for a, b in zip(apart, x, strict=True)}) > 20  # they differ


@pytest.mark.parametrize("op", OPS)
def test_one_draw_is_siamese(op):
    augmentation, real, synthetic = Augmentation((op,)), pixels(5, 3, 12, 12), pixels(2, 3, 12, 12, seed=2)
    for seed in range(4):
        draw = augmentation.draw(1, (3, 12, 12), rng(seed))
        both = augmentation.apply(torch.cat([real, synthetic]), draw)
        assert torch.allclose(both[:5], augmentation.apply(real, draw), atol=1e-6)
        assert torch.allclose(both[5:], augmentation.apply(synthetic, draw), atol=1e-6)
        repeated = augmentation.apply(real, draw.take(torch.zeros(5, dtype=torch.long)))
        assert torch.allclose(both[:5], repeated, atol=1e-6)


def test_order_is_mirror_colour_geometry_cutout():
    augmentation, x = Augmentation.parse("cutout_crop_color_flip"), pixels(4, 3, 16, 16)
    draw = augmentation.draw(1, (3, 16, 16), rng(3))
    expected = x
    for op in ("flip", "color", "crop", "cutout"):
        if draw.active[op].item():
            expected = run(op, expected, *draw.values[op][0].tolist())
    assert torch.allclose(augmentation.apply(x, draw), expected, atol=1e-6)
    assert (
        augmentation.apply(x, draw) == 0
    ).float().mean() >= 8 * 8 / 256 / 4  # at worst a quarter of the square shows


def share(happened):
    return happened.float().mean().item()


@pytest.mark.parametrize(("mode", "batches"), [("idc", 3000), ("idc_per_image", 1), ("dsa", 3000), ("dc", 1)])
def test_which_ops_happen(mode, batches):
    """The shares are the same whether a batch or each of its images makes the choice."""
    augmentation, generator = Augmentation.parse(ALL, mode), rng()
    draws = [augmentation.draw(6000 // batches, (3, 32, 32), generator).active for _ in range(batches)]
    active = {op: torch.cat([draw[op] for draw in draws]) for op in OPS}
    if mode in ("idc", "idc_per_image"):
        assert active["color"].all() and active["cutout"].all()
        assert share(active["flip"]) == pytest.approx(0.5, abs=0.03)
        assert (sum(active[op].int() for op in GEOMETRIC) == 1).all()
        for op in GEOMETRIC:
            assert share(active[op]) == pytest.approx(1 / 3, abs=0.03)
        return
    assert (sum(active[op].int() for op in OPS) <= 1).all()
    for op in OPS:  # the mirror still tosses its coin
        assert share(active[op]) == pytest.approx(1 / 12 if op == "flip" else 1 / 6, abs=0.02)


def test_a_geometric_op_without_rivals_always_happens():
    active = Augmentation.parse("color_crop_cutout").draw(10, (3, 32, 32), rng()).active
    assert active["crop"].all() and "rotate" not in active


def test_strengths_fill_their_ranges():
    values = Augmentation.parse(ALL).draw(20_000, (3, 32, 28), rng()).values
    angle = torch.atan2(values["rotate"][:, 2], values["rotate"][:, 0]).rad2deg()
    for got, low, high in [
        (values["color"][:, 0], -0.5, 0.5),
        (values["color"][:, 1], 0.0, 2.0),
        (values["color"][:, 2], 0.5, 1.5),
        (values["scale"][:, 0], 1 / 1.2, 1.2),
        (values["scale"][:, 3], 1 / 1.2, 1.2),
        (angle, -15.0, 15.0),
    ]:
        width = high - low
        assert low - 1e-4 <= got.min() < low + 0.01 * width
        assert high - 0.01 * width < got.max() <= high + 1e-4
        assert got.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * width)
        assert got.std().item() == pytest.approx(width / math.sqrt(12), rel=0.03)
    assert values["scale"][:, 1:3].abs().max() == 0
    rotation = values["rotate"].view(-1, 2, 2)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(2).expand(20_000, 2, 2), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(20_000), atol=1e-5)
    independent = torch.corrcoef(values["scale"][:, [0, 3]].T)[0, 1]
    assert abs(independent) < 0.03
    assert values["crop"][:, 0].unique().tolist() == list(range(-4, 5))  # int(32/8 + .5)
    assert values["crop"][:, 1].unique().tolist() == list(range(-4, 5))  # int(28/8 + .5)
    top, left, bottom, right = values["cutout"].T
    assert top.unique().tolist() == list(range(-8, 25))  # centre 0..32, half of 16
    assert left.unique().tolist() == list(range(-7, 22))  # centre 0..28, half of 14
    assert ((bottom - top == 16) & (right - left == 14)).all()


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_agrees_with_finite_differences(count, seed):
    augmentation = Augmentation.parse(ALL)
    draw = augmentation.draw(count, (3, 6, 6), rng(seed))
    x = pixels(6, 3, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmentation.apply(x, draw), (x,), fast_mode=True)


@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_theirs(count, dtype):
    augmentation, x = Augmentation.parse(ALL), pixels(32, 3, 16, 16)
    draw = augmentation.draw(count, (3, 16, 16), rng())
    got = augmentation.apply(x.to(dtype), draw)
    assert got.dtype == dtype
    assert torch.allclose(got.float(), augmentation.apply(x, draw), atol=0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("mode", ["idc", "dsa"])
def test_applying_never_waits_for_the_device(count, mode):
    # Tensors of the meta device have no values: reading one back, or mixing devices, raises.
    augmentation, x = Augmentation.parse(ALL, mode), torch.empty(8, 3, 16, 16, device="meta")
    for seed in range(12):
        draw = augmentation.draw(count, (3, 16, 16), rng(seed))
        got = augmentation.apply(x, draw)
        assert got.device.type == "meta"
        assert got.shape == x.shape


def test_identity_and_global_state(monkeypatch):
    x, before = pixels(3, 1, 8, 8), torch.get_rng_state()
    for text in ("", "none"):
        identity = Augmentation.parse(text)
        assert identity.apply(x, identity.draw(1, (1, 8, 8), rng())) is x
    for strength, zero in {"BRIGHTNESS": 0, "CONTRAST": 0, "CUTOUT": 0, "CROP": 0, "SCALE": 1, "ROTATE": 0}.items():
        monkeypatch.setattr(augment, strength, zero)  # a grey pixel has no saturation
    for op in OPS[1:]:
        weakest = Augmentation((op,))
        assert torch.allclose(weakest.apply(x, weakest.draw(3, (1, 8, 8), rng())), x, atol=1e-5)
    monkeypatch.undo()
    draws = [Augmentation.parse(ALL).draw(4, (1, 8, 8), rng(7)).values for _ in range(2)]
    assert all(torch.equal(draws[0][op], draws[1][op]) for op in OPS)
    cutmix(x, torch.arange(3), rng(), probability=1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_refusals():
    with pytest.raises(UnknownNameError, match="did you mean 'rotate'"):
        Augmentation.parse("color_rotat")
    with pytest.raises(UnknownNameError, match="augmentation mode 'dream'"):
        Augmentation.parse("color", "dream")
    with pytest.raises(ValueError, match="twice"):
        Augmentation.parse("crop_crop")
    augmentation = Augmentation.parse("crop")
    with pytest.raises(ValueError, match="count=1 or count=N"):
        augmentation.apply(pixels(3, 1, 8, 8), augmentation.draw(2, (1, 8, 8), rng()))
    with pytest.raises(ValueError, match="shape of these images"):
        augmentation.apply(pixels(3, 1, 8, 8), augmentation.draw(1, (1, 16, 16), rng()))


def test_cutmix_lam_is_the_share_of_pixels_kept():
    labels = torch.arange(6)
    x = labels.float().view(6, 1, 1, 1).expand(6, 2, 9, 12).contiguous()  # image i holds the number i
    shares, generator = [], rng()
    for _ in range(200):
        mixed, a, b, lam = cutmix(x, labels, generator, probability=1.0)
        assert torch.equal(a, labels)
        for image, kept, pasted in zip(mixed, a.tolist(), b.tolist(), strict=True):
            assert set(image.unique().tolist()) <= {kept, pasted}
            if kept != pasted:
                assert (image == kept).float().mean().item() == pytest.approx(lam, abs=1e-6)
                assert (image == pasted).float().mean().item() == pytest.approx(1 - lam, abs=1e-6)
        changed = (mixed != x).any(1).any(0)  # one box for the whole batch
        assert changed.sum() == changed.any(1).sum() * changed.any(0).sum()
        shares.append(lam)
    assert min(shares) < 0.3
    assert max(shares) > 0.95
    assert torch.equal(x[:, 0, 0, 0], labels.float())  # the given images are left alone


def test_cutmix_probability_and_gradient():
    x, labels, generator = pixels(4, 1, 8, 8), torch.arange(4), rng()
    skipped = [cutmix(x, labels, generator, probability=0.3)[0] is x for _ in range(1000)]
    assert sum(skipped) / 1000 == pytest.approx(0.7, abs=0.05)
    images, _, same, lam = cutmix(x, labels, generator, probability=0.0)
    assert images is x
    assert same is labels
    assert lam == 1.0
    leaf = x.clone().requires_grad_()
    cutmix(leaf, labels, generator, probability=1.0)[0].sum().backward()
    assert leaf.grad.sum() == x.numel()  # every output pixel comes from exactly one input pixel
