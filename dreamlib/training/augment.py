"""Differentiable siamese augmentation, and CutMix: every random number is drawn first, then applied.

Drawing apart from applying is what makes the augmentation *siamese*: the real and the synthetic batch of a matching
step go through one and the same transform (Zhao & Bilen, "Dataset Condensation with Differentiable Siamese
Augmentation", ICML 2021), combined as in IDC (Kim et al., ICML 2022).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamlib._engine.registry import unknown

# In the order of application: mirror, recolour, move, and only then cut, so that no later step fills the hole again.
OPS = ("flip", "color", "crop", "scale", "rotate", "cutout")
GEOMETRIC = ("crop", "scale", "rotate")
MODES = ("idc", "dsa", "dc", "idc_per_image")


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers of one application: n = 1 transform for a whole batch, or n = N, one for each image.

    ``active[op]`` is (n,) bool, whether the op happens; ``values[op]`` is (n, k) float32, how (see ``Augmentation``).
    Both live on the CPU, so that ``apply`` can branch on them without waiting for a GPU; or both on a GPU, after
    ``Augmentation.from_table``, where it does not branch. ``size`` is the (H, W) of the images drawn for.
    """

    count: int
    size: tuple[int, int]
    active: dict[str, Tensor]
    values: dict[str, Tensor]

    def table(self) -> Tensor:
        """All of it as one (n, columns) tensor, to be sent to a GPU in one piece; see ``Augmentation.from_table``."""
        parts = [part.float() for op in self.active for part in (self.active[op].unsqueeze(1), self.values[op])]
        return torch.cat(parts, 1) if parts else torch.zeros(self.count, 0)

    def take(self, rows: Tensor) -> "AugmentationDraw":
        """The draws of the given rows, repeats allowed: K draws become one for each image of K classes.

        >>> draw = Augmentation.parse("flip").draw(2, (1, 8, 8), torch.Generator())
        >>> draw.take(torch.arange(2).repeat_interleave(5)).count
        10
        """
        active = {op: tensor[rows] for op, tensor in self.active.items()}
        return AugmentationDraw(len(rows), self.size, active, {op: value[rows] for op, value in self.values.items()})


@dataclass(frozen=True)
class Augmentation:
    """Which ops, how combined and how strong; the defaults are those of DSA and IDC.

    ``mode='idc'``: flip (a coin), color and cutout happen whenever they are listed, then exactly one of the listed
    crop, scale, rotate. ``mode='dsa'``: exactly one of all listed ops. Which one is drawn once per batch, its strength
    once per image, as in the released code of IDC, DREAM, DSA, DM and MTT. ``mode='dc'`` chooses among all listed ops
    for each image and turns by up to 45° (DC's evaluation on MNIST); ``mode='idc_per_image'`` is 'idc' with a choice
    for each image.

    Strengths: ``brightness`` b adds U(−b, b); ``saturation`` s multiplies the distance to the channel mean by U(0, s);
    ``contrast`` c multiplies the distance to the image mean by U(1 − c, 1 + c); ``cutout`` is the side of the zeroed
    square and ``crop`` the largest shift, both over the image side; ``scale`` z reads x and y at U(1/z, z) times their
    distance from the centre, so that more than 1 shrinks; ``rotate`` is the largest angle in degrees.

    Raises UnknownNameError for an unknown op or mode, ValueError for a repeated op or a strength out of range.

    >>> augmentation = Augmentation.parse("color_crop_cutout")
    >>> rng = torch.Generator().manual_seed(0)
    >>> draw = augmentation.draw(1, (3, 32, 32), rng)  # one draw for the real and for the synthetic images
    >>> real, synthetic = torch.rand(64, 3, 32, 32), torch.rand(4, 3, 32, 32)
    >>> len(augmentation.apply(real, draw)), len(augmentation.apply(synthetic, draw))
    (64, 4)
    """

    ops: tuple[str, ...]
    mode: str = "idc"
    brightness: float = 0.5
    saturation: float = 2.0
    contrast: float = 0.5
    cutout: float = 0.5
    crop: float = 0.125
    scale: float = 1.2
    rotate: float = 15.0

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPS:
                raise unknown("augmentation", op, list(OPS))
        if len(set(self.ops)) < len(self.ops):
            raise ValueError(f"an augmentation is listed twice in {self.ops}; list each once")
        if self.mode not in MODES:
            raise unknown("augmentation mode", self.mode, list(MODES))
        limits = {"brightness": (0, 1), "saturation": (0, math.inf), "contrast": (0, 1), "cutout": (0, 1)}
        limits |= {"crop": (0, 1), "scale": (1, math.inf), "rotate": (0, 180)}
        for field, (low, high) in limits.items():
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field}={getattr(self, field)} is outside [{low}, {high}]; choose a value inside")

    @classmethod
    def parse(cls, text: str, mode: str = "idc") -> "Augmentation":
        """From the literature's spelling, ops joined by underscores; an empty text or 'none' is the identity.

        >>> Augmentation.parse("color_crop").ops, Augmentation.parse("none").ops
        (('color', 'crop'), ())
        """
        return cls(() if text in ("", "none") else tuple(text.split("_")), mode, rotate=45.0 if mode == "dc" else 15.0)

    def draw(self, count: int, image_shape: tuple[int, int, int], rng: torch.Generator) -> AugmentationDraw:
        """``count`` independent transforms for (C, H, W) images, from a generator on the CPU."""
        return self.of_uniform(self.uniform(count, rng), image_shape)

    def uniform(self, count: int, rng: torch.Generator) -> Tensor:
        """Return the random numbers of a batch of ``count`` transforms, (count, 11), in [0, 1)."""
        # One call, the same columns whatever is listed. In float64 the integers below are unbiased: floor(u·k) < k.
        numbers = torch.rand(count, 11, generator=rng, dtype=torch.float64)
        if self.mode in ("idc", "dsa"):
            numbers[:, 10] = numbers[0, 10]  # one choice for the whole batch
        return numbers

    def of_uniform(self, u: Tensor, image_shape: tuple[int, int, int]) -> AugmentationDraw:
        """The transforms that numbers of ``uniform`` stand for."""
        _, height, width = image_shape
        values = {op: _OPS[op][0](self, u, height, width).float() for op in self.ops}
        return AugmentationDraw(len(u), (height, width), self._choose(u), values)

    def from_table(self, table: Tensor, size: tuple[int, int]) -> AugmentationDraw:
        """A draw of this augmentation from its ``table``, wherever that lies.

        >>> augmentation = Augmentation.parse("flip_color")
        >>> draw = augmentation.draw(2, (1, 8, 8), torch.Generator().manual_seed(0))
        >>> torch.equal(augmentation.from_table(draw.table(), (8, 8)).values["color"], draw.values["color"])
        True
        """
        active, values, column = {}, {}, 0
        for op in self.ops:
            active[op] = table[:, column] > 0.5
            values[op] = table[:, column + 1 : column + 1 + _COLUMNS[op]]
            column += 1 + _COLUMNS[op]
        return AugmentationDraw(len(table), size, active, values)

    def _choose(self, u: Tensor) -> dict[str, Tensor]:
        """Which ops happen, (n,) bool each, from columns 9 (the coin of the mirror) and 10 (one of several)."""
        rivals = self.ops if self.mode in ("dsa", "dc") else tuple(op for op in self.ops if op in GEOMETRIC)
        chosen = (u[:, 10] * len(rivals)).long()
        active = {op: torch.ones(len(u), dtype=torch.bool) for op in self.ops}
        for number, op in enumerate(rivals):
            active[op] = chosen == number
        if "flip" in active:
            active["flip"] &= u[:, 9] < 0.5
        return active

    def apply(self, images: Tensor, draw: AugmentationDraw) -> Tensor:
        """The (N, C, H, W) images transformed as drawn; differentiable in the images, of their dtype and device.

        Interpolation runs in float32 for half-precision images. Raises ValueError for a draw made for another number or
        size of images.
        """
        if draw.count not in (1, len(images)) or draw.size != tuple(images.shape[2:]):
            raise ValueError(
                f"the draw is for {draw.count} images of {draw.size}, the batch is {tuple(images.shape)}; "
                "draw with count=1 or count=N and the shape of these images"
            )
        for op in OPS:
            if op in draw.values:
                images = _on_rows(images, draw.active[op], draw.values[op], _OPS[op][1])
        return images


def _on_rows(x: Tensor, active: Tensor, values: Tensor, transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Transform the active images only; (1, k) values go for the whole batch."""
    if active.device.type != "cpu":
        return _everywhere(x, active, values, transform)
    rows = torch.nonzero(active).flatten()  # on the CPU: no wait for the device
    if len(rows) == 0:
        return x
    if len(rows) == len(active):
        return transform(x, values)
    there = rows.to(x.device, non_blocking=True)
    return x.index_copy(0, there, transform(x[there], values[rows]))


def _everywhere(x: Tensor, active: Tensor, values: Tensor, transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The same without a branch: all images are transformed, the active ones keep it."""
    return torch.where(active.view(-1, 1, 1, 1), transform(x, values), x)


# What each op needs to know, (n, k), from the columns of the table of uniform numbers.


def _draw_color(a: Augmentation, u: Tensor, height: int, width: int) -> Tensor:
    low = torch.tensor([-a.brightness, 0.0, 1 - a.contrast])
    high = torch.tensor([a.brightness, a.saturation, 1 + a.contrast])
    return low + u[:, :3] * (high - low)


def _draw_shift(a: Augmentation, u: Tensor, height: int, width: int) -> Tensor:
    reach = torch.tensor([int(height * a.crop + 0.5), int(width * a.crop + 0.5)])
    return (u[:, 3:5] * (2 * reach + 1)).floor() - reach  # pixels down and right


def _draw_scale(a: Augmentation, u: Tensor, height: int, width: int) -> Tensor:
    factor = 1 / a.scale + u[:, 5:7] * (a.scale - 1 / a.scale)
    return torch.diag_embed(factor).flatten(1)  # output (x, y) is read at the input's matrix @ (x, y)


def _draw_rotation(a: Augmentation, u: Tensor, height: int, width: int) -> Tensor:
    angle = (2 * u[:, 5] - 1) * math.radians(a.rotate)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)


def _draw_box(a: Augmentation, u: Tensor, height: int, width: int) -> Tensor:
    side = torch.tensor([int(height * a.cutout + 0.5), int(width * a.cutout + 0.5)])
    # Centres reach the border, so the square may be clipped; an even side has one position more (as in DSA).
    first = (u[:, 7:9] * (torch.tensor([height, width]) + 1 - side % 2)).floor() - side // 2
    return torch.cat([first, first + side], 1)  # top, left, bottom, right; the last two exclusive, all unclipped


# The transforms: (m, C, H, W) images, (m, k) values or (1, k) for all.


def _flip(x: Tensor, values: Tensor) -> Tensor:
    return x.flip(3)


def _color(x: Tensor, values: Tensor) -> Tensor:
    """Brightness, saturation and contrast in one affine map of the pixel, its channel mean and its image mean."""
    # Python numbers cost no transfer and do not round to half precision.
    if len(values) == 1 and values.device.type == "cpu":
        added, saturation, contrast = values[0].tolist()
    else:
        added, saturation, contrast = values.to(x.device, x.dtype, non_blocking=True).T.reshape(3, -1, 1, 1, 1)
    if x.shape[1] == 1:  # a grey pixel is its own channel mean: saturation leaves it alone
        return x * contrast + (x.mean((2, 3), keepdim=True) * (1 - contrast) + added)
    grey = x.mean(1, keepdim=True)  # (m, 1, H, W)
    offset = grey.mean((2, 3), keepdim=True) * (1 - contrast) + added  # (m, 1, 1, 1)
    return x * (saturation * contrast) + (grey * ((1 - saturation) * contrast) + offset)


def _shift(x: Tensor, values: Tensor) -> Tensor:
    if len(values) == 1 and values.device.type == "cpu":
        down, right = (int(v) for v in values[0].tolist())
        return F.pad(x, (right, -right, down, -down))  # a negative pad crops
    height, width = x.shape[2:]
    down, right = values.to(x.device, torch.int64, non_blocking=True).T.unsqueeze(2)  # (m, 1) each
    row = torch.arange(height, device=x.device) - down  # (m, H): where output row i comes from
    column = torch.arange(width, device=x.device) - right  # (m, W)
    source = row.clamp(0, height - 1).unsqueeze(2) * width + column.clamp(0, width - 1).unsqueeze(1)  # (m, H, W)
    moved = x.flatten(2).gather(2, source.flatten(1).unsqueeze(1).expand(len(x), x.shape[1], -1)).view(x.shape)
    return moved * (_inside(row, height).unsqueeze(2) & _inside(column, width).unsqueeze(1)).unsqueeze(1)


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _warp(x: Tensor, values: Tensor) -> Tensor:
    work = x if x.dtype == torch.float64 else x.float()
    matrix = values.to(x.device, work.dtype, non_blocking=True).view(-1, 2, 2)
    count, _, height, width = x.shape
    grid = F.affine_grid(F.pad(matrix, (0, 1)), [len(matrix), 1, height, width], align_corners=False)
    if len(matrix) == count:
        return F.grid_sample(work, grid, align_corners=False).to(x.dtype)
    if x.device.type == "cpu":  # one grid for all: images as channels share the weights; on a GPU that would starve it
        work = work.reshape(1, -1, height, width)
    warped = F.grid_sample(work, grid.expand(len(work), -1, -1, -1), align_corners=False)
    return warped.view(x.shape).to(x.dtype)


def _cut(x: Tensor, values: Tensor) -> Tensor:
    height, width = x.shape[2:]
    top, left, bottom, right = values.to(x.device, non_blocking=True).T.unsqueeze(2)  # (m, 1) each
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # (m, H), (m, W)
    keep = ~(rows.unsqueeze(2) & columns.unsqueeze(1))  # (m, H, W)
    return x * keep.unsqueeze(1).to(x.dtype)  # a product: several times faster here than masked_fill


_COLUMNS = {"flip": 0, "color": 3, "crop": 2, "scale": 4, "rotate": 4, "cutout": 4}  # how many values each has
_Draw = Callable[[Augmentation, Tensor, int, int], Tensor]
_OPS: dict[str, tuple[_Draw, Callable[[Tensor, Tensor], Tensor]]] = {
    "flip": (lambda a, u, height, width: u[:, :0], _flip),
    "color": (_draw_color, _color),
    "crop": (_draw_shift, _shift),
    "scale": (_draw_scale, _warp),
    "rotate": (_draw_rotation, _warp),
    "cutout": (_draw_box, _cut),
}


@dataclass(frozen=True)
class CutMixDraw:
    """One box (top, bottom, left, right) for a batch, whose ``partner`` (n,) fills it, and the share of pixels kept."""

    box: tuple[int, int, int, int]
    partner: Tensor
    lam: float


def draw_cutmix(
    count: int, size: tuple[int, int], rng: torch.Generator, beta: float = 1.0, probability: float = 0.5
) -> CutMixDraw | None:
    """The random numbers of ``cutmix``; None when it is not to happen."""
    if beta <= 0 or not 0 <= probability <= 1:
        raise ValueError(
            f"cutmix needs beta > 0 and a probability in [0, 1]; got beta={beta}, probability={probability}"
        )
    if torch.rand((), generator=rng).item() >= probability:
        return None
    height, width = size
    # torch's Beta takes no generator; numpy's does, and is seeded from ours.
    numpy_rng = np.random.default_rng(torch.randint(2**62, (), generator=rng).item())
    side = math.sqrt(1 - numpy_rng.beta(beta, beta))
    middle_y, middle_x = numpy_rng.integers(height), numpy_rng.integers(width)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(middle_y - half_y, 0), min(middle_y + half_y, height)
    left, right = max(middle_x - half_x, 0), min(middle_x + half_x, width)
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return CutMixDraw((top, bottom, left, right), torch.randperm(count, generator=rng), float(lam))


def cutmix(
    images: Tensor, labels: Tensor, rng: torch.Generator, beta: float = 1.0, probability: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, float]:
    """With the given probability, replace one box of every image by that of another image of the batch.

    Train on lam · loss(labels_a) + (1 − lam) · loss(labels_b). The box is the same for the whole batch, its area
    1 − Beta(β, β) of the image before clipping at the border (Yun et al., ICCV 2019; per batch as in IDC), and lam is
    the exact share of pixels kept.

    Returns (images, labels_a, labels_b, lam), with lam = 1 and the images as given when not applied. Raises ValueError
    for β ≤ 0 or a probability outside [0, 1].

    >>> x, a, b, lam = cutmix(torch.rand(4, 1, 8, 8), torch.arange(4), torch.Generator(), probability=0.0)
    >>> lam, bool((a == b).all())
    (1.0, True)
    """
    drawn = draw_cutmix(len(images), tuple(images.shape[2:]), rng, beta, probability)
    if drawn is None:
        return images, labels, labels, 1.0
    partner, (top, bottom, left, right) = drawn.partner.to(images.device), drawn.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, labels, labels[partner], drawn.lam


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """A box (top, bottom, left, right), as a tensor (4,) → which pixels (H, W) lie in it.

    >>> box_mask(torch.tensor([0, 1, 1, 3]), 2, 3).tolist()
    [[False, True, True], [False, False, False]]
    """
    row, column = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    rows, columns = (row >= box[0]) & (row < box[1]), (column >= box[2]) & (column < box[3])
    return rows.unsqueeze(1) & columns
