"""Differentiable siamese augmentation: the random numbers are drawn first and applied afterwards.

Because of this separation one draw serves two batches: the real and the synthetic images of a matching step go through
the same transform (Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021). Ops are
combined as in IDC (Kim et al., ICML 2022).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamlib.data.types import DatasetInfo
from dreamlib.errors import unknown

# In the order of application; cutout comes last, so that no other op fills the hole.
OPS = ("flip", "color", "crop", "scale", "rotate", "cutout")
GEOMETRIC = ("crop", "scale", "rotate")
MODES = ("idc", "dsa", "dc", "idc_per_image")

# The strengths of DSA and IDC.
BRIGHTNESS = 0.5  # b adds U(−b, b) to every pixel
SATURATION = 2.0  # s multiplies the distance to the channel mean by U(0, s)
CONTRAST = 0.5  # c multiplies the distance to the image mean by U(1 − c, 1 + c)
CUTOUT = 0.5  # side of the zeroed square, as a fraction of the image's side
CROP = 0.125  # largest shift, as a fraction of the image's side
SCALE = 1.2  # z samples x and y at U(1/z, z) times their distance from the centre; a factor above 1 shrinks the image
ROTATE, ROTATE_DC = 15.0, 45.0  # largest angle in degrees, the second in mode 'dc'


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers of n transforms: n = 1 for a whole batch, or n = N, one per image.

    count: n.
    size: (H, W) of the images.
    active: op → (n,) bool, whether the op is applied.
    values: op → (n, k) float32, the op's k parameters (see ``Augmentation``).

    With tensors on the CPU, ``Augmentation.apply`` skips inactive images without synchronising. With tensors on a GPU
    (see ``Augmentation.from_table``) it transforms all images and selects, because a CUDA graph cannot branch.
    """

    count: int
    size: tuple[int, int]
    active: dict[str, Tensor]
    values: dict[str, Tensor]

    def table(self) -> Tensor:
        """Return ``active`` and ``values`` as one tensor (n, columns), which needs a single transfer to a GPU."""
        parts = [part.float() for op in self.active for part in (self.active[op].unsqueeze(1), self.values[op])]
        return torch.cat(parts, 1) if parts else torch.zeros(self.count, 0)

    def take(self, rows: Tensor) -> "AugmentationDraw":
        """Return the transforms of the given rows; a row may occur several times.

        >>> draw = Augmentation.parse("flip").draw(2, (1, 8, 8), torch.Generator())
        >>> draw.take(torch.arange(2).repeat_interleave(5)).count
        10
        """
        active = {op: tensor[rows] for op, tensor in self.active.items()}
        return AugmentationDraw(len(rows), self.size, active, {op: value[rows] for op, value in self.values.items()})


@dataclass(frozen=True)
class Augmentation:
    """A choice of ops and how they are combined.

    ops: names from ``OPS``.
    mode: how ops are combined.
        'idc': apply color and cutout always, flip with probability 1/2, and exactly one of crop, scale and rotate.
        'dsa': apply exactly one of the ops; a chosen flip mirrors with probability 1/2.
        'idc_per_image': as 'idc', with crop, scale or rotate chosen per image.
        'dc': as 'dsa', with the op chosen per image (DC's evaluation on MNIST).
        In 'idc' and 'dsa' the op is chosen once per batch and its strength per image, as in the released code of IDC,
        DREAM, DSA, DM and MTT.

    Raise UnknownNameError for an unknown op or mode, ValueError for a repeated op.

    >>> augmentation = Augmentation.parse("color_crop_cutout")
    >>> rng = torch.Generator().manual_seed(0)
    >>> draw = augmentation.draw(1, (3, 32, 32), rng)  # one draw for the real and for the synthetic images
    >>> real, synthetic = torch.rand(64, 3, 32, 32), torch.rand(4, 3, 32, 32)
    >>> len(augmentation.apply(real, draw)), len(augmentation.apply(synthetic, draw))
    (64, 4)
    """

    ops: tuple[str, ...]
    mode: str = "idc"

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPS:
                raise unknown("augmentation", op, list(OPS))
        if len(set(self.ops)) < len(self.ops):
            raise ValueError(f"an augmentation is listed twice in {self.ops}; list each once")
        if self.mode not in MODES:
            raise unknown("augmentation mode", self.mode, list(MODES))

    @classmethod
    def parse(cls, text: str, mode: str = "idc") -> "Augmentation":
        """Return the augmentation written as in the literature: ops joined by underscores, '' or 'none' for no op.

        >>> Augmentation.parse("color_crop").ops, Augmentation.parse("none").ops
        (('color', 'crop'), ())
        """
        return cls(() if text in ("", "none") else tuple(text.split("_")), mode)

    def draw(self, count: int, image_shape: tuple[int, int, int], rng: torch.Generator) -> AugmentationDraw:
        """Return ``count`` independent transforms of (C, H, W) images; ``rng`` is a CPU generator."""
        return self.from_uniform(self.uniform(count, rng), image_shape)

    def uniform(self, count: int, rng: torch.Generator) -> Tensor:
        """Return the random numbers of ``count`` transforms, (count, 11) in [0, 1)."""
        # The number of columns does not depend on the ops. float64 guarantees floor(u·k) < k for the integers below.
        numbers = torch.rand(count, 11, generator=rng, dtype=torch.float64)
        if self.mode in ("idc", "dsa"):
            numbers[:, 10] = numbers[0, 10]  # one op for the whole batch
        return numbers

    def from_uniform(self, u: Tensor, image_shape: tuple[int, int, int]) -> AugmentationDraw:
        """Return the transforms of (C, H, W) images that the numbers ``u`` (n, 11) of ``uniform`` determine."""
        _, height, width = image_shape
        values = {op: _OPS[op][0](u, height, width, self.mode).float() for op in self.ops}
        return AugmentationDraw(len(u), (height, width), self._choose(u), values)

    def from_table(self, table: Tensor, size: tuple[int, int]) -> AugmentationDraw:
        """Return the draw with this ``AugmentationDraw.table``, on the table's device; ``size`` is (H, W).

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
        """Return op → (n,) bool, whether it is applied, from columns 9 (flip) and 10 (the op among several)."""
        exclusive = self.ops if self.mode in ("dsa", "dc") else tuple(op for op in self.ops if op in GEOMETRIC)
        chosen = (u[:, 10] * len(exclusive)).long()
        active = {op: torch.ones(len(u), dtype=torch.bool) for op in self.ops}
        for number, op in enumerate(exclusive):
            active[op] = chosen == number
        if "flip" in active:
            active["flip"] &= u[:, 9] < 0.5
        return active

    def apply(self, images: Tensor, draw: AugmentationDraw) -> Tensor:
        """Return the transformed images (N, C, H, W), differentiable with respect to the images.

        Half-precision images are interpolated in float32 and returned in their own dtype. Raise ValueError if the draw
        was made for another number or size of images.
        """
        if draw.count not in (1, len(images)) or draw.size != tuple(images.shape[2:]):
            raise ValueError(
                f"the draw is for {draw.count} images of {draw.size}, the batch has shape {tuple(images.shape)}; "
                "draw with count=1 or count=N and the shape of these images"
            )
        for op in OPS:
            if op in draw.values:
                images = _transform_active(images, draw.active[op], draw.values[op], _OPS[op][1])
        return images


def _transform_active(
    x: Tensor, active: Tensor, values: Tensor, transform: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Transform the active images only; ``values`` of shape (1, k) apply to the whole batch."""
    if active.device.type != "cpu":
        return _transform_all_and_select(x, active, values, transform)
    rows = torch.nonzero(active).flatten()  # on the CPU, so without waiting for the device
    if len(rows) == 0:
        return x
    if len(rows) == len(active):
        return transform(x, values)
    device_rows = rows.to(x.device, non_blocking=True)
    return x.index_copy(0, device_rows, transform(x[device_rows], values[rows]))


def _transform_all_and_select(
    x: Tensor, active: Tensor, values: Tensor, transform: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Transform all images and select the active ones: the same result without a branch."""
    return torch.where(active.view(-1, 1, 1, 1), transform(x, values), x)


# Each op's parameters (n, k) from the columns of the uniform numbers (n, 11).


def _draw_color(u: Tensor, height: int, width: int, mode: str) -> Tensor:
    low = torch.tensor([-BRIGHTNESS, 0.0, 1 - CONTRAST])
    high = torch.tensor([BRIGHTNESS, SATURATION, 1 + CONTRAST])
    return low + u[:, :3] * (high - low)


def _draw_shift(u: Tensor, height: int, width: int, mode: str) -> Tensor:
    largest = torch.tensor([int(height * CROP + 0.5), int(width * CROP + 0.5)])
    return (u[:, 3:5] * (2 * largest + 1)).floor() - largest  # pixels down and right


def _draw_scale(u: Tensor, height: int, width: int, mode: str) -> Tensor:
    factor = 1 / SCALE + u[:, 5:7] * (SCALE - 1 / SCALE)
    return torch.diag_embed(factor).flatten(1)  # output (x, y) is sampled from the input at matrix @ (x, y)


def _draw_rotation(u: Tensor, height: int, width: int, mode: str) -> Tensor:
    angle = (2 * u[:, 5] - 1) * math.radians(ROTATE_DC if mode == "dc" else ROTATE)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)


def _draw_box(u: Tensor, height: int, width: int, mode: str) -> Tensor:
    side = torch.tensor([int(height * CUTOUT + 0.5), int(width * CUTOUT + 0.5)])
    # Centres may lie on the border, so the square may be clipped. As in DSA, an even side has one more position.
    first = (u[:, 7:9] * (torch.tensor([height, width]) + 1 - side % 2)).floor() - side // 2
    return torch.cat([first, first + side], 1)  # top, left, bottom, right: the last two exclusive, none clipped


# The transforms of images (m, C, H, W) by values (m, k), or (1, k) for all images.


def _flip(x: Tensor, values: Tensor) -> Tensor:
    return x.flip(3)


def _color(x: Tensor, values: Tensor) -> Tensor:
    """Apply brightness, saturation and contrast as one affine map of a pixel, its channel mean and its image mean."""
    # Python numbers need no transfer and are not rounded to half precision.
    if len(values) == 1 and values.device.type == "cpu":
        added, saturation, contrast = values[0].tolist()
    else:
        added, saturation, contrast = values.to(x.device, x.dtype, non_blocking=True).T.reshape(3, -1, 1, 1, 1)
    if x.shape[1] == 1:  # a grey pixel equals its channel mean, so saturation does not change it
        return x * contrast + (x.mean((2, 3), keepdim=True) * (1 - contrast) + added)
    grey = x.mean(1, keepdim=True)  # (m, 1, H, W)
    offset = grey.mean((2, 3), keepdim=True) * (1 - contrast) + added  # (m, 1, 1, 1)
    return x * (saturation * contrast) + (grey * ((1 - saturation) * contrast) + offset)


def _shift(x: Tensor, values: Tensor) -> Tensor:
    if len(values) == 1 and values.device.type == "cpu":
        down, right = (int(v) for v in values[0].tolist())
        return F.pad(x, (right, -right, down, -down))  # a negative padding crops
    height, width = x.shape[2:]
    down, right = values.to(x.device, torch.int64, non_blocking=True).T.unsqueeze(2)  # (m, 1) each
    row = torch.arange(height, device=x.device) - down  # (m, H): the source of each output row
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
    if x.device.type == "cpu":  # images as channels share the interpolation weights; slower on a GPU
        work = work.reshape(1, -1, height, width)
    warped = F.grid_sample(work, grid.expand(len(work), -1, -1, -1), align_corners=False)
    return warped.view(x.shape).to(x.dtype)


def _cut(x: Tensor, values: Tensor) -> Tensor:
    height, width = x.shape[2:]
    top, left, bottom, right = values.to(x.device, non_blocking=True).T.unsqueeze(2)  # (m, 1) each
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # (m, H), (m, W)
    keep = ~(rows.unsqueeze(2) & columns.unsqueeze(1))  # (m, H, W)
    return x * keep.unsqueeze(1).to(x.dtype)  # several times faster than masked_fill


_COLUMNS = {"flip": 0, "color": 3, "crop": 2, "scale": 4, "rotate": 4, "cutout": 4}  # parameters of each op
_Draw = Callable[[Tensor, int, int, str], Tensor]
_OPS: dict[str, tuple[_Draw, Callable[[Tensor, Tensor], Tensor]]] = {
    "flip": (lambda u, height, width, mode: u[:, :0], _flip),
    "color": (_draw_color, _color),
    "crop": (_draw_shift, _shift),
    "scale": (_draw_scale, _warp),
    "rotate": (_draw_rotation, _warp),
    "cutout": (_draw_box, _cut),
}


def augmentation_for(info: DatasetInfo, ops: str, mode: str = "idc") -> Augmentation:
    """Return the augmentation for a data set, without flip if a mirrored image may change its class (digits).

    ops, mode: see ``Augmentation.parse``.

    >>> digits = DatasetInfo("toy", ("0", "1"), 1, 8, (0.0,), (1.0,), flip=False)
    >>> augmentation_for(digits, "flip_crop").ops
    ('crop',)
    """
    augmentation = Augmentation.parse(ops, mode=mode)
    if info.flip:
        return augmentation
    return replace(augmentation, ops=tuple(op for op in augmentation.ops if op != "flip"))
