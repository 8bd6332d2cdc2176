"""The interface of data sets, and the base class of those published with checksums."""

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
