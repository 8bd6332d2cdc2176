"""What every data set offers, and the shared part of those whose files were published with checksums."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib.data.fetch import PublishedFile, Source, check_files, fetch_files
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import unknown

DATASETS: Registry[type["Dataset"]] = Registry("data set")


@dataclass(frozen=True)
class Dataset(ABC):
    """One data set. Subclasses are frozen dataclasses whose fields are the data set's options; each registers itself.

    ``name`` is the name it is registered under and its folder below ``data/``.
    """

    name: ClassVar[str] = ""

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """Classes, shape and normalisation."""

    @abstractmethod
    def load(self, split: str, data_dir: str | Path) -> LabeledImages:
        """The images of 'train' or 'test' in file order: (N, C, H, W) float32 in [0, 1].

        ``data_dir`` is the folder of all data sets. Raises DataError when files are missing or wrong, and
        UnknownNameError for another split ('validation' is carved out of 'train' by ``load_split``).
        """

    @abstractmethod
    def fetch(self, data_dir: str | Path) -> list[Path]:
        """Make the files be there and right; returns their paths. Raises DataError with the remedy."""

    @abstractmethod
    def paths(self, data_dir: str | Path) -> list[Path]:
        """The files that ``load`` reads, verified where checksums are known. Raises DataError as ``load`` does."""

    def folder(self, data_dir: str | Path) -> Path:
        """Where the files lie."""
        return Path(data_dir) / self.name

    def fake(self, split: str, per_class: int, rng: torch.Generator) -> LabeledImages:
        """Synthetic images like the real ones in shape, range, type and labels: N = K·``per_class``, classes in turn.

        For tests and trials without data. Each class is a blob at a place and of a tint of its own, moved a little
        and covered with noise by ``rng``: easy to learn, not trivial. Raises UnknownNameError for an unknown split.

        >>> import torch
        >>> from dreamlib.data import create
        >>> toys = create("mnist").fake("train", per_class=3, rng=torch.Generator().manual_seed(0))
        >>> tuple(toys.images.shape), toys.labels[:12].tolist()
        ((30, 1, 28, 28), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
        """
        check_split(split)
        info = self.info
        k, side = info.num_classes, math.ceil(math.sqrt(info.num_classes))
        labels = torch.arange(k).repeat(per_class)  # (N,)
        n = len(labels)
        grid = torch.stack((labels // side, labels % side), dim=1)  # (N, 2): row and column of the class's cell
        centres = (grid + 0.5) / side + 0.03 * torch.randn(n, 2, generator=rng)
        places = (torch.arange(info.size) + 0.5) / info.size  # (H,) pixel centres in (0, 1)
        near = torch.exp(-(((places - centres[:, :, None]) / 0.12) ** 2) / 2)  # (N, 2, H)
        blobs = near[:, 0, :, None] * near[:, 1, None, :]  # (N, H, W)
        phase = labels[:, None] / k + torch.arange(info.channels) / info.channels  # (N, C)
        tint = 0.6 + 0.3 * torch.cos(2 * math.pi * phase)
        noise = 0.1 * torch.rand(n, info.channels, info.size, info.size, generator=rng)
        images = (tint[:, :, None, None] * blobs[:, None] + noise).clamp(0, 1)  # (N, C, H, W)
        return LabeledImages(images, labels, k)


@dataclass(frozen=True)
class PublishedDataset(Dataset):
    """A data set made of published files with known MD5s: fetched, checked before every load, then read."""

    @abstractmethod
    def files(self) -> tuple[PublishedFile, ...]:
        """The published files; asked at each use, so that a test can pin files of its own."""

    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """Where the files may come from, in the order to try."""

    @abstractmethod
    def read(self, split: str, folder: Path) -> LabeledImages:
        """Read 'train' or 'test' from files that were verified."""

    def load(self, split: str, data_dir: str | Path) -> LabeledImages:
        """Verify the files, then read; see ``Dataset.load``."""
        check_split(split)
        self.paths(data_dir)
        return self.read(split, self.folder(data_dir))

    def fetch(self, data_dir: str | Path) -> list[Path]:
        """Fetch what is missing, verify everything; see ``fetch_files``."""
        return fetch_files(self.folder(data_dir), self.files(), self.sources())

    def paths(self, data_dir: str | Path) -> list[Path]:
        """The published files, verified."""
        return check_files(self.folder(data_dir), self.files())


def check_split(split: str) -> None:
    """Raise UnknownNameError unless ``split`` is 'train' or 'test', the two that a data set is published in."""
    if split not in ("train", "test"):
        raise unknown("split", split, ["train", "test"])


def from_bytes(images: np.ndarray | Tensor, labels: np.ndarray | Tensor | list[int], num_classes: int) -> LabeledImages:
    """Images (N, C, H, W) of bytes 0..255 and labels (N,) as the library's record: float32 in [0, 1], int64.

    >>> from_bytes(np.full((1, 1, 2, 2), 255, np.uint8), [3], num_classes=10).images.max().item()
    1.0
    """
    pixels = torch.as_tensor(np.ascontiguousarray(images)).to(torch.float32).div_(255)
    return LabeledImages(pixels, torch.as_tensor(labels, dtype=torch.int64), num_classes)
