"""The IDX format of the MNIST family: four gzipped files."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.base import PublishedDataset, from_bytes
from dreamlib.data.fetch import Mirror, PublishedFile, Source
from dreamlib.data.types import LabeledImages


@dataclass(frozen=True)
class IdxDataset(PublishedDataset):
    """A data set of 28×28 grey images in ten classes, published as four IDX files.

    reader_name: torchvision's class, which lists the mirrors.
    md5s: the MD5 of each published file.
    """

    reader_name: ClassVar[str]
    md5s: ClassVar[Mapping[str, str]]

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the four files."""
        return tuple(PublishedFile(name, md5) for name, md5 in self.md5s.items())

    def sources(self) -> tuple[Source, ...]:
        """Return torchvision's mirrors."""
        return tuple(Mirror(url) for url in getattr(torchvision.datasets, self.reader_name).mirrors)

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 1, 28, 28)."""
        prefix = "train" if split == "train" else "t10k"
        images, labels = (_array(folder / f"{prefix}-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
        return from_bytes(images[:, None], labels, num_classes=10)


def _array(path: Path) -> np.ndarray:
    """Return the array of bytes in one file. Its fourth byte counts the axes; their lengths follow, four bytes each."""
    with gzip.open(path) as file:
        content = bytearray(file.read())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
