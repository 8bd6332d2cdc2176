"""Labelled images and the description of their data set: the two records that all modules use."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, std), a number per channel


def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor, cached because each copy to a GPU would wait for it."""
    if torch.compiler.is_compiling():  # created on the device, because a CUDA graph cannot copy from the CPU
        return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
    return _cached_tensor(values, dtype, device)


@cache
def _cached_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True)
class LabeledImages:
    """Real images with their classes.

    images: (N, C, H, W) float32, pixels in [0, 1], or normalised or whitened for methods that need that.
    labels: (N,) int64 in [0, K).
    num_classes: K.

    Raise ValueError if the lengths differ or a label is out of range.

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
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must lie in [0, {self.num_classes}); got {int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, label: int) -> Tensor:
        """Return the rows (n,) of one class, ascending."""
        return torch.nonzero(self.labels == label).flatten()

    def subset(self, rows: Tensor) -> "LabeledImages":
        """Return the given rows, in the given order."""
        return LabeledImages(self.images[rows], self.labels[rows], self.num_classes)

    def to(self, device: torch.device | str) -> "LabeledImages":
        """Return the same images on another device."""
        return LabeledImages(self.images.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True)
class DatasetInfo:
    """The description of a data set.

    name: registered name.
    classes: names of the K classes.
    channels: C.
    size: side H = W in pixels.
    mean, std: statistics per channel that normalise the images for the networks.
    flip: whether a horizontally mirrored image keeps its class (not for digits).
    whitening: 'none' or 'zca', applied to the images before (see ``dreamlib.data.whitening``).
    bounded: whether pixels lie in [0, 1]; normalised or whitened ones do not.
    dc_statistics: (mean, std) of DC and its successors, if they differ.
    pixel_statistics: (mean, std) over all pixels of a channel, if they differ.
    zca_epsilon: of the whitening, None without one.
    normalised_by: (mean, std) that images without bounds were normalised by; None if they were not, or nobody knows.
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
        """Return (images − mean) / std for images (N, C, H, W); differentiable.

        >>> info = DatasetInfo("toy", ("a", "b"), 1, 2, mean=(0.5,), std=(0.25,))
        >>> info.normalise(torch.ones(1, 1, 1, 1)).item()
        2.0
        """
        mean, std = (
            _constants(tuple(values), images.dtype, images.device).view(1, self.channels, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std
