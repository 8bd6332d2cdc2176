"""Augmentation under recorded draws against the output of IDC's, DSA's and MTT's released code."""

import pytest
import torch
from golden_numbers import assert_near, golden

from dreamlib.training.augment import GEOMETRIC, OPS, Augmentation, AugmentationDraw

TOLERANCE, TOLERANCE_AFFINE = 2e-6, 2e-5  # the second wherever scale or rotate takes part
EXACT = {"flip", "crop", "cutout"}
KINDS = ("grey", "color")
LENGTHS = {"color": 3, "crop": 2, "scale": 4, "rotate": 4, "cutout": 4, "flip": 0}  # numbers that describe an op


# ---- the released code's draws in our parameters --------------------------------------------------------------------


def our_color(added=None, saturation=None, contrast=None):
    """(n, 3): what is added, the factor on the distance to the grey pixel, the factor on the distance to the mean."""
    count = len(next(given for given in (added, saturation, contrast) if given is not None))
    neutral = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64).repeat(count, 1)
    for column, given in enumerate((added, saturation, contrast)):
        if given is not None:
            neutral[:, column] = given
    return neutral


def our_shift(offset):
    """The released offset says where a pixel is read; ours says how far the content moves down and right."""
    return -offset


def our_scale(factor_xy):
    """The matrix that takes an output position (x, y) to where it is read."""
    return torch.diag_embed(factor_xy).flatten(1)


def our_rotation(radians):
    return torch.stack([radians.cos(), -radians.sin(), radians.sin(), radians.cos()], 1)


def our_box(centre, image_side):
    """Top, left, bottom and right of the square about a released centre, not clipped."""
    side = int(0.5 * image_side + 0.5)
    first = centre - side // 2
    return torch.cat([first, first + side], 1)


def draw_of(ops, values, flipped, size):
    """A draw in which the ops of ``values`` happen and the other ones of ``ops`` do not; ``flipped`` (n,) is 0 or 1."""
    count = max([len(value) for value in values.values()] + ([] if flipped is None else [len(flipped)]))
    every = {op: values.get(op, torch.zeros(count, LENGTHS[op])).float() for op in ops}
    active = {op: torch.full((count,), op in values) for op in ops}
    if flipped is not None:
        active["flip"] = flipped.bool()
    return AugmentationDraw(count, size, active, every)


def recorded_draw(ops, numbers, image_side):
    """A draw of ``ops`` from recorded numbers as they are called in whole lists; absent ops do not happen."""
    values, color = {}, [numbers.get(name) for name in ("brightness_added", "saturation_factor", "contrast_factor")]
    if color[0] is not None:
        values["color"] = our_color(*color)
    for op, name, convert in (
        ("crop", "crop_offset", our_shift),
        ("scale", "scale_factor_xy", our_scale),
        ("rotate", "rotate_radians", our_rotation),
        ("cutout", "cutout_centre", lambda centre: our_box(centre, image_side)),
    ):
        if name in numbers:
            values[op] = convert(numbers[name])
    return draw_of(ops, values, numbers.get("flipped"), (image_side, image_side))


def tolerance_of(ops):
    if set(ops) & {"scale", "rotate"}:
        return TOLERANCE_AFFINE
    return 0 if set(ops) <= EXACT else TOLERANCE


# ---- single ops -----------------------------------------------------------------------------------------------------

IDC_NAMES = {  # the released op → ours, and what the recorded draw is called in a whole list
    "brightness": ("color", {"added": "brightness_added"}),
    "saturation": ("color", {"factor": "saturation_factor"}),
    "contrast": ("color", {"factor": "contrast_factor"}),
    "crop": ("crop", {"offset": "crop_offset"}),
    "scale": ("scale", {"factor_xy": "scale_factor_xy"}),
    "rotate": ("rotate", {"radians": "rotate_radians"}),
    "cutout": ("cutout", {"centre": "cutout_centre"}),
    "flip": ("flip", {"flipped": "flipped"}),
    "flip_no": ("flip", {"flipped": "flipped"}),
}
IDC_OPS = [(way, op) for way in ("batch", "per_image") for op in IDC_NAMES if (way, op) != ("per_image", "flip_no")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("way", "op"), IDC_OPS)
def test_each_op_of_idc(kind, way, op):
    images = golden("augment_idc")[f"{kind}.input"]
    numbers = golden("augment_idc", f"{kind}.{way}.{op}.")
    expected, (ours, names) = numbers.pop("output"), IDC_NAMES[op]
    numbers = {names[name]: value for name, value in numbers.items()}
    if ours == "color":  # the other two at their neutral strengths
        neutral = {"brightness_added": 0.0, "saturation_factor": 1.0, "contrast_factor": 1.0}
        ((name, drawn),) = numbers.items()
        numbers = {other: torch.full_like(drawn, value) for other, value in neutral.items()} | {name: drawn}
    draw = recorded_draw((ours,), numbers, images.shape[-1])
    assert draw.count == (1 if way == "batch" else len(images))
    assert_near(Augmentation((ours,), "idc").apply(images, draw), expected, tolerance_of((ours,)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["siamese", "per_image"])
@pytest.mark.parametrize("op", OPS)
def test_each_op_of_dsa_and_mtt(kind, way, op):
    images = golden("augment_dsa")[f"{kind}.input"]
    numbers = golden("augment_dsa", f"{kind}.{way}.{op}.")
    names = {"offset": "crop_offset", "factor_xy": "scale_factor_xy", "radians": "rotate_radians"}
    names |= {"centre": "cutout_centre"}
    outputs = [numbers.pop(name) for name in ("output", "output_mtt") if name in numbers]
    assert len(outputs) == (2 if op in ("scale", "rotate") else 1)
    draw = recorded_draw((op,), {names.get(name, name): value for name, value in numbers.items()}, images.shape[-1])
    assert draw.count == (1 if way == "siamese" else len(images))
    for expected in outputs:
        assert_near(Augmentation((op,), "dsa").apply(images, draw), expected, tolerance_of((op,)))


# ---- whole lists ----------------------------------------------------------------------------------------------------


def idc_lists():
    """(kind, use, list, seed) of all recorded whole lists."""
    results = {tuple(name.split(".")[:5]) for name in golden("augment_idc") if ".whole." in name}
    return sorted((kind, use, ops, seed) for kind, _, use, ops, seed in results)


@pytest.mark.parametrize(("kind", "use", "listed", "seed"), idc_lists())
def test_whole_lists_of_idc(kind, use, listed, seed):
    images = golden("augment_idc")[f"{kind}.input"]
    numbers = golden("augment_idc", f"{kind}.whole.{use}.{listed}.{seed}.")
    augmentation = Augmentation.parse("_".join(OPS) if listed == "all" else listed, "idc")
    draw = recorded_draw(augmentation.ops, numbers, images.shape[-1])
    (chosen,) = numbers["chosen"].tolist()
    assert {op for op in GEOMETRIC if op in draw.active and draw.active[op].any()} == {GEOMETRIC[chosen]}
    assert_near(augmentation.apply(images, draw), numbers["output"], tolerance_of(("color", GEOMETRIC[chosen])))


DSA_ORDER = ("color", "crop", "cutout", "flip", "scale", "rotate")  # in which the released code numbers them


def dsa_draws():
    """(way, seed) of the recorded calls of mode S that have an output."""
    results = [name.split(".") for name in golden("augment_dsa", "color.S.") if name.endswith(".output")]
    return sorted((way, seed) for way, seed, _ in results)


@pytest.mark.parametrize(("way", "seed"), dsa_draws())
def test_one_op_of_six_in_dsas_mode_s(way, seed):
    images = golden("augment_dsa")["color.input"]
    numbers = golden("augment_dsa", f"color.S.{way}.{seed}.")
    (chosen,) = numbers["chosen"].tolist()
    op, augmentation = DSA_ORDER[chosen], Augmentation(DSA_ORDER, "dsa")
    numbers = {name.removeprefix("color_").removeprefix("flip_"): value for name, value in numbers.items()}
    draw = recorded_draw(augmentation.ops, numbers, images.shape[-1])
    assert [other for other, active in draw.active.items() if active.any()] == [op]
    assert_near(augmentation.apply(images, draw), numbers["output"], tolerance_of((op,)))
    if way == "siamese":
        half = augmentation.apply(0.5 * images[:2], draw)
        assert_near(half, numbers["output_of_half_of_first_two"], tolerance_of((op,)))


# ---- what is drawn once for a batch, and what for each image --------------------------------------------------------

ALL = "_".join(OPS)


def choices(mode, count=64, draws=40):
    """Which ops happen in ``draws`` batches: op → (draws, count) bool; and the strengths of the last batch."""
    augmentation, rng = Augmentation.parse(ALL, mode), torch.Generator().manual_seed(0)
    results = [augmentation.draw(count, (3, 16, 16), rng) for _ in range(draws)]
    return {op: torch.stack([draw.active[op] for draw in results]) for op in OPS}, results[-1].values


def test_the_released_code_chooses_once_for_a_batch_with_strengths_for_each_image():
    for topic in ("augment_idc", "augment_dsa"):
        for name, value in golden(topic).items():
            if name.endswith(".chosen"):
                assert value.shape == (1,)
    lists = golden("augment_idc", "color.whole.eval.color_crop_scale_rotate.")
    strengths = [lists[f"seed{seed}.{name}"] for seed, name in ((1, "scale_factor_xy"), (3, "rotate_radians"))]
    assert all(len(strength.unique(dim=0)) == 3 for strength in strengths)


@pytest.mark.parametrize(("mode", "rivals"), [("idc", GEOMETRIC), ("dsa", OPS)])
def test_one_choice_for_a_batch_and_a_strength_for_each_image(mode, rivals):
    active, values = choices(mode)
    happened = torch.stack([active[op].any(1) for op in rivals])  # (ops, draws)
    for op in rivals:
        if op != "flip":  # within a batch all images or none; a mirror image takes a coin on top
            assert torch.equal(active[op].all(1), active[op].any(1))
    assert (happened.sum(0) == 1).all()
    assert happened.any(1).all()
    assert (active["flip"].sum(1) < 64).all()
    for op in ("color", "crop", "scale", "rotate", "cutout"):
        assert len(values[op].unique(dim=0)) > 20


def test_modes_dc_and_idc_per_image_choose_for_each_image():
    for mode, rivals in (("dc", [op for op in OPS if op != "flip"]), ("idc_per_image", GEOMETRIC)):
        active, _ = choices(mode)
        for op in rivals:
            assert (active[op].any(1) & ~active[op].all(1)).all(), f"{op} in mode {mode}: some images of each batch"
        assert (sum(active[op].int() for op in rivals) <= 1).all()


def recorded(kind, what):
    """All recorded draws of one number for the images of one kind, by IDC and by DSA, one after the other."""
    names = what, what.replace("_", ".", 1)  # in whole lists; as a single op
    return torch.cat([value for topic in ("augment_idc", "augment_dsa") for name, value in golden(topic).items()
                      if name.startswith(f"{kind}.") and name.endswith(names)])  # fmt: skip


@pytest.mark.parametrize(("kind", "side"), [("grey", 28), ("color", 16)])
def test_recorded_strengths_lie_in_the_ranges_that_ours_are_drawn_from(kind, side):
    augmentation = Augmentation.parse(ALL)
    # The ends of our ranges, from the smallest and the largest uniform number.
    least, most = (augmentation.from_uniform(torch.full((1, 11), u, dtype=torch.float64), (3, side, side)).values
                   for u in (0.0, 1 - 2**-53))  # fmt: skip
    for column, name in enumerate(("brightness_added", "saturation_factor", "contrast_factor")):
        numbers = recorded(kind, name)
        assert least["color"][0, column] <= numbers.min() and numbers.max() <= most["color"][0, column]
    angles = recorded(kind, "rotate_radians")
    assert angles.abs().max() <= torch.atan2(most["rotate"][0, 2], most["rotate"][0, 0])
    for op, numbers in (
        ("crop", our_shift(recorded(kind, "crop_offset"))),
        ("scale", our_scale(recorded(kind, "scale_factor_xy"))),
        ("cutout", our_box(recorded(kind, "cutout_centre"), side)),
    ):
        assert (least[op] <= numbers).all() and (numbers <= most[op]).all(), op
