"""The interface of data sets, and the base class of those published with checksums."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib.data.fetch import LocalFolder, PublishedFile, Source, check_files, fetch_files
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import unknown

DATASETS: Registry[type["Dataset"]] = Registry("data set")


@dataclass(frozen=True)
class Dataset(ABC):
    """A data set. Subclasses are frozen dataclasses whose fields are the options.

    name: the registered name, which is also the name of the folder in ``data_dir``.
    """

    name: ClassVar[str] = ""

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """Classes, shape and normalisation."""

    def info_in(self, data_dir: str | Path | None) -> DatasetInfo:
        """Return ``info``; a data set that has to read its images for it may cache the result below ``data_dir``."""
        return self.info

    @abstractmethod
    def load(self, split: str, data_dir: str | Path) -> LabeledImages:
        """Return the images of 'train' or 'test' in file order: (N, C, H, W), uint8 or float32 in [0, 1].

        ``data_dir`` is the folder of all data sets. Raise DataError for missing or wrong files, UnknownNameError for
        another split; ``load_split`` holds 'validation' out of 'train'.
        """

    @abstractmethod
    def fetch(self, data_dir: str | Path, source: str | Path | None = None) -> list[Path]:
        """Fetch missing files, verify all, and return their paths; raise DataError if that fails.

        source: a local folder to take them from.
        """

    @abstractmethod
    def paths(self, data_dir: str | Path) -> list[Path]:
        """Return the files that ``load`` reads, verified if checksums are known; raise DataError as ``load`` does."""

    def folder(self, data_dir: str | Path) -> Path:
        """Return the folder of the files."""
        return Path(data_dir) / self.name

    def fake(self, split: str, per_class: int, rng: torch.Generator) -> LabeledImages:
        """Return artificial images of the real ones' shape and range, in float32, for tests and trials without data.

        There are K·``per_class`` images, the classes in turn. An image is a blob, whose position and tint depend on the
        class, randomly shifted and with noise: easy to learn but not trivial. Raise UnknownNameError for an unknown
        split.

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
        positions = (torch.arange(info.size) + 0.5) / info.size  # (H,) pixel centres in (0, 1)
        profiles = torch.exp(-(((positions - centres[:, :, None]) / 0.12) ** 2) / 2)  # (N, 2, H)
        blobs = profiles[:, 0, :, None] * profiles[:, 1, None, :]  # (N, H, W)
        phase = labels[:, None] / k + torch.arange(info.channels) / info.channels  # (N, C)
        tint = 0.6 + 0.3 * torch.cos(2 * math.pi * phase)
        noise = 0.1 * torch.rand(n, info.channels, info.size, info.size, generator=rng)
        images = (tint[:, :, None, None] * blobs[:, None] + noise).clamp(0, 1)  # (N, C, H, W)
        return LabeledImages(images, labels, k)


@dataclass(frozen=True)
class PublishedDataset(Dataset):
    """A data set of published files with known MD5s, which are verified before every load."""

    @abstractmethod
    def files(self) -> tuple[PublishedFile, ...]:
        """Return the published files; a method, so that tests can replace them."""

    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """Return the sources of the files, in the order to try."""

    @abstractmethod
    def read(self, split: str, folder: Path) -> LabeledImages:
        """Read 'train' or 'test' from verified files in ``folder``."""

    def load(self, split: str, data_dir: str | Path) -> LabeledImages:
        """Verify the files and read a split; see ``Dataset.load``."""
        check_split(split)
        self.paths(data_dir)
        return self.read(split, self.folder(data_dir))

    def sources_at(self, path: Path) -> tuple[Source, ...]:
        """Return the sources in a local folder: the published files under their published names."""
        return (LocalFolder(str(path), path),)

    def fetch(self, data_dir: str | Path, source: str | Path | None = None) -> list[Path]:
        """Fetch missing files and verify all; see ``fetch_files``."""
        sources = self.sources() if source is None else self.sources_at(Path(source))
        return fetch_files(self.folder(data_dir), self.files(), sources)

    def paths(self, data_dir: str | Path) -> list[Path]:
        """Return the published files, verified."""
        return check_files(self.folder(data_dir), self.files())


def check_split(split: str) -> None:
    """Raise UnknownNameError unless ``split`` is one of the published splits, 'train' and 'test'."""
    if split not in ("train", "test"):
        raise unknown("split", split, ["train", "test"])


def from_bytes(images: np.ndarray | Tensor, labels: np.ndarray | Tensor | list[int], num_classes: int) -> LabeledImages:
    """Return byte images (N, C, H, W) in 0..255 and labels (N,) as ``LabeledImages``: uint8, int64.

    >>> from_bytes(np.full((1, 1, 2, 2), 255, np.uint8), [3], num_classes=10).pixels().max().item()
    1.0
    """
    stored = torch.as_tensor(np.ascontiguousarray(images))
    return LabeledImages(stored, torch.as_tensor(labels, dtype=torch.int64), num_classes)
