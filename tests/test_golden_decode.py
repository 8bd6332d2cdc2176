"""Multi-formation against the numbers of IDC's and DREAM's released decoder."""

import pytest
import torch
from golden_numbers import assert_near, golden

from dreamlib.synthetic import decode as decoding
from dreamlib.synthetic.decode import decode, formation
from dreamlib.synthetic.synthetic_set import SyntheticSet

TOLERANCE = 1e-6
SHAPES = ("1x28x28", "3x32x32")


def crop_major(factors):
    """Where each image of the released order lies in ours, for the canvases of one class cut by ``factors``.

    Both take the canvases of one factor together, the largest first. The released decoder then gives all canvases'
    first crop, all canvases' second crop, …; ours gives all crops of one canvas in a row.
    """
    order, first = [], 0
    for factor in sorted(set(factors), reverse=True):
        count = factors.count(factor)
        ours = torch.arange(count * factor**2).view(count, factor**2) + first
        order.append(ours.T.flatten())
        first += ours.numel()
    return torch.cat(order)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_crops_are_enlarged_as_released(shape, factor):
    numbers = golden("decode", f"single.{shape}.")
    canvases, order = numbers["canvases"], crop_major((factor, factor))
    released = canvases if factor == 1 else numbers[f"f{factor}.decoded"]
    assert_near(decode(canvases, factor)[order], released, TOLERANCE)
    images, labels = SyntheticSet(canvases, torch.zeros(2, dtype=torch.long), 1, factor).decode()
    assert_near(images[order], released, TOLERANCE)
    assert labels.tolist() == [0] * 2 * factor**2


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_released_order_is_crop_major_and_ours_canvas_major(shape, factor):
    released = golden("decode", f"single.{shape}.f{factor}.")
    ours = torch.arange(2).repeat_interleave(factor**2)  # which canvas each of our images is cut from
    assert torch.equal(ours[crop_major((factor, factor))], released["canvas_of"])
    shades = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 1, 12, 12)
    assert torch.equal(decode(shades, factor)[:, 0, 0, 0], torch.tensor([0.25, 0.75])[ours])


def test_a_side_the_factor_does_not_divide_is_padded_with_a_half():
    numbers = golden("decode", "single.1x28x28.")
    last = decode(numbers["canvases"], 3)[crop_major((3, 3))][-1, 0]  # canvas rows and columns 20 … 29, of 28
    released = numbers["f3.decoded"][-1, 0]
    # Enlarged from 10 to 28 pixels, the four last rows and columns are read between canvas pixels 28 and 29.
    for image in (last, released):
        padding = (image - 0.5).abs() < TOLERANCE
        assert padding.all(0).nonzero().flatten().tolist() == [24, 25, 26, 27]
        assert padding.all(1).nonzero().flatten().tolist() == [24, 25, 26, 27]


@pytest.mark.parametrize(
    ("name", "factor", "bound"), [("1x28x28.ipc5.f3.bound24", 3, 24), ("1x32x32.ipc3.f2.bound8", 2, 8)]
)
def test_the_bounded_rule_cuts_the_first_canvases_finest(name, factor, bound, monkeypatch):
    monkeypatch.setattr(decoding, "BOUND", bound)
    numbers = golden("decode", f"bound.{name}.")
    canvases = numbers["canvases"]
    distilled = SyntheticSet(canvases, torch.zeros(len(canvases), dtype=torch.long), 1, factor, "bound")
    order = crop_major(distilled.factors)
    images, _ = distilled.decode()
    assert_near(images[order], numbers["decoded"], TOLERANCE)
    canvas_of = torch.arange(len(canvases)).repeat_interleave(torch.tensor(distilled.factors) ** 2)
    assert torch.equal(canvas_of[order], numbers["canvas_of"])


@pytest.mark.parametrize(
    ("ipc", "factor", "bound", "decoded", "by_three", "by_two", "whole"), golden("decode")["bound.counts"].tolist()
)
def test_the_bounded_rule_counts_as_released(ipc, factor, bound, decoded, by_three, by_two, whole, monkeypatch):
    monkeypatch.setattr(decoding, "BOUND", bound)
    factors = formation(ipc, factor, "bound")
    assert [factors.count(f) for f in (3, 2, 1)] == [by_three, by_two, whole]
    assert sum(f * f for f in factors) == decoded
    assert len(factors) == ipc
