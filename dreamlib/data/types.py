"""The two records everything else passes around: labelled images and what is known of their data set."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor


def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor; a kept one, because sending it to a GPU anew would wait for the GPU."""
    if torch.compiler.is_compiling():  # made on the device: a CUDA graph may not copy them there
        return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
    return _kept(values, dtype, device)


@cache
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True)
class LabeledImages:
    """Images with their classes; the only form in which real data travels through the library.

    ``images`` is (N, C, H, W) float32 in [0, 1], un-normalised, unless a method sees them normalised or whitened (see
    ``Project.seen``); ``labels`` is (N,) int64 in [0, K).

    Raises ValueError when the two disagree in length or a label is outside [0, ``num_classes``).

    >>> d = LabeledImages(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), num_classes=2)
    >>> d.of_class(1).tolist(), len(d)
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
        """Row numbers (n,) of one class, ascending."""
        return torch.nonzero(self.labels == label).flatten()

    def subset(self, rows: Tensor) -> "LabeledImages":
        """The given rows, in the given order."""
        return LabeledImages(self.images[rows], self.labels[rows], self.num_classes)

    def to(self, device: torch.device | str) -> "LabeledImages":
        """The same images on another device."""
        return LabeledImages(self.images.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a byte of it is read.

    ``mean`` and ``std`` (one per channel) normalise [0, 1] pixels before a network sees them; ``dc_statistics`` is the
    pair that DC and its successors use where it differs. ``flip`` says whether a horizontal mirror image keeps its
    class (not for digits). ``size`` is the side H = W in pixels. ``whitening`` is what the images went through before
    this: 'none' or 'zca' (see ``dreamlib.data.whitening``). Pixels lie in [0, 1] if ``bounded``; normalised or
    whitened ones do not.
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
    dc_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def unbounded(self) -> "DatasetInfo":
        """Return the description of the same images after ``normalise``: nothing left to normalise, no bounds."""
        return replace(self, mean=(0.0,) * self.channels, std=(1.0,) * self.channels, bounded=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] → (x − mean) / std, differentiably.

        >>> info = DatasetInfo("toy", ("a", "b"), 1, 2, mean=(0.5,), std=(0.25,))
        >>> info.normalise(torch.ones(1, 1, 1, 1)).item()
        2.0
        """
        mean, std = (
            _constants(tuple(values), images.dtype, images.device).view(1, self.channels, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std
