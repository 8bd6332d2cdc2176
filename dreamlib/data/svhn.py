"""SVHN: street view house numbers, 32×32 colour, cropped digits (Netzer et al., 2011)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.base import DATASETS, PublishedDataset, from_bytes
from dreamlib.data.fetch import Mirror, PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages


def _listed() -> list[tuple[str, str, str]]:
    """Return URL, name and MD5 of the training and the test file; 'extra' is not part of the usual protocol."""
    return [tuple(torchvision.datasets.SVHN.split_list[split]) for split in ("train", "test")]


@DATASETS.register("svhn")
@dataclass(frozen=True)
class Svhn(PublishedDataset):
    """73,257 training and 26,032 test images of the digits 0 to 9 in classes of unequal size."""

    name: ClassVar[str] = "svhn"

    @property
    def info(self) -> DatasetInfo:
        """Ten digits; a mirrored digit is not a digit, so ``flip`` is False."""
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return DatasetInfo(self.name, tuple("0123456789"), 3, 32, mean=mean, std=std, flip=False)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the two MATLAB files."""
        return tuple(PublishedFile(name, md5) for _, name, md5 in _listed())

    def sources(self) -> tuple[Source, ...]:
        """Return the authors' server."""
        return tuple(dict.fromkeys(Mirror(url.removesuffix(name)) for url, name, _ in _listed()))

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 3, 32, 32); torchvision maps the file's label 10 to the digit 0."""
        dataset = torchvision.datasets.SVHN(folder, split=split, download=False)
        return from_bytes(dataset.data, dataset.labels, num_classes=10)
