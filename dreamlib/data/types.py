"""Labelled images and the description of their data set: the two records that all modules use."""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from dreamlib.data.fetch import DataError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, std), a number per channel
CHUNK = 256  # images converted at a time; bounds memory


def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor, cached because each copy to a GPU synchronises."""
    if torch.compiler.is_compiling():  # created on the device, because a CUDA graph cannot copy from the CPU
        return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
    return _cached_tensor(values, dtype, device)


@cache
def _cached_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def as_float(images: Tensor) -> Tensor:
    """Return byte images as float32 in [0, 1], x / 255, and floating-point images unchanged.

    >>> as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [0.0, 1.0]
    """
    if images.dtype != torch.uint8:
        return images
    # Divide by a tensor: with a Python number a GPU multiplies by 1/255, which rounds differently.
    return images.to(torch.float32).div_(_constants((255.0,), torch.float32, images.device))


def allocate(what: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialised tensor for ``what``; raise DataError, with its size, if memory is too small."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch raises nothing more specific on a CPU
        sides, gib = " × ".join(f"{side:,}" for side in shape), math.prod(shape) * dtype.itemsize / 2**30
        raise DataError(
            f"memory is too small for {what} ({sides} of {str(dtype).removeprefix('torch.')}): they take {gib:,.1f} "
            "GiB; choose a smaller size (an option of data set folder) or fewer images"
        ) from error


@dataclass(frozen=True)
class LabeledImages:
    """Real images with their classes.

    images: (N, C, H, W). uint8 as stored in the data set's files, a quarter of the memory, which ``pixels`` returns as
        float32 in [0, 1]; or floating point: pixels in [0, 1], or normalised or whitened for methods that need that.
    labels: (N,) int64 in [0, K).
    num_classes: K.

    Raise ValueError if the lengths differ, a label is out of range or the images are of another type.

    >>> data = LabeledImages(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), num_classes=2)
    >>> data.of_class(1).tolist(), len(data)
    ([1, 2], 4)
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images must be (N, C, H, W) with one label each; got images {tuple(self.images.shape)} "
                f"and labels {tuple(self.labels.shape)}"
            )
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise ValueError(f"images must be uint8 (0 to 255) or floating point (0 to 1); got {self.images.dtype}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must lie in [0, {self.num_classes}); got {int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return the images of the given rows, by default all, in floating point: (n, C, H, W).

        >>> data = LabeledImages(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.tensor([0, 1, 1]), 2)
        >>> data.pixels(data.of_class(1)).unique().tolist()
        [0.2...]
        """
        return as_float(self.images[rows])

    def of_class(self, label: int) -> Tensor:
        """Return the rows (n,) of one class, ascending."""
        return torch.nonzero(self.labels == label).flatten()

    def subset(self, rows: Tensor) -> "LabeledImages":
        """Return the given rows (n,), int64, in the given order."""
        rows = rows.to(self.images.device)
        return LabeledImages(self.images.index_select(0, rows), self.labels[rows], self.num_classes)

    def to(self, device: torch.device | str) -> "LabeledImages":
        """Return the same images on another device."""
        return LabeledImages(self.images.to(device), self.labels.to(device), self.num_classes)

    def normalised(self, info: "DatasetInfo") -> "LabeledImages":
        """Return the images after ``info.normalise``, in floating point; raise DataError if memory is too small."""
        dtype = torch.float32 if self.images.dtype == torch.uint8 else self.images.dtype
        images = allocate("the normalised images", tuple(self.images.shape), dtype, self.images.device)
        for target, chunk in zip(images.split(CHUNK), self.images.split(CHUNK), strict=True):
            target.copy_(info.normalise(chunk))
        return replace(self, images=images)


@dataclass(frozen=True)
class DatasetInfo:
    """The description of a data set.

    name: registered name.
    classes: names of the K classes.
    channels: C.
    size: side H = W in pixels.
    mean, std: statistics per channel that normalise the images for the networks.
    flip: whether a horizontally mirrored image keeps its class (not for digits).
    whitening: 'none' or 'zca', already applied to the images (see ``dreamlib.data.whitening``).
    bounded: whether pixels lie in [0, 1]; normalised or whitened ones do not.
    dc_statistics: (mean, std) of DC and its successors, if they differ.
    pixel_statistics: (mean, std) over all pixels of a channel, if they differ.
    zca_epsilon: epsilon of the whitening; None without whitening.
    normalised_by: (mean, std) that images without bounds were normalised by; None if they were not, or if unknown.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    whitening: str = "none"
    bounded: bool = True
    dc_statistics: Statistics | None = None
    pixel_statistics: Statistics | None = None
    zca_epsilon: float | None = None
    normalised_by: Statistics | None = None

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def unbounded(self) -> "DatasetInfo":
        """Return the description of the images after ``normalise``: mean 0, std 1, not bounded."""
        neutral = {"mean": (0.0,) * self.channels, "std": (1.0,) * self.channels}
        return replace(self, **neutral, bounded=False, normalised_by=(self.mean, self.std))

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images − mean) / std for images (N, C, H, W), bytes or floating point; differentiable.

        >>> info = DatasetInfo("toy", ("a", "b"), 1, 2, mean=(0.5,), std=(0.25,))
        >>> info.normalise(torch.ones(1, 1, 1, 1)).item()
        2.0
        """
        images = as_float(images)
        mean, std = (
            _constants(tuple(values), images.dtype, images.device).view(1, self.channels, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std
