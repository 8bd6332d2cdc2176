"""MNIST: 70,000 handwritten digits, 28×28 grey (LeCun, Cortes and Burges, 1998)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dreamlib._engine.torchvision_import import torchvision
from dreamlib.data import idx
from dreamlib.data.base import DATASETS, PublishedDataset
from dreamlib.data.fetch import PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages


@DATASETS.register("mnist")
@dataclass(frozen=True)
class Mnist(PublishedDataset):
    """60,000 training and 10,000 test images of the digits 0 to 9."""

    name: ClassVar[str] = "mnist"

    @property
    def info(self) -> DatasetInfo:
        """Ten digits; a mirrored digit is not a digit, so ``flip`` is False."""
        return DatasetInfo(self.name, tuple("0123456789"), 1, 28, mean=(0.1307,), std=(0.3081,), flip=False)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the four IDX files."""
        return idx.published(torchvision.datasets.MNIST)

    def sources(self) -> tuple[Source, ...]:
        """Return torchvision's mirrors."""
        return idx.mirrors(torchvision.datasets.MNIST)

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 1, 28, 28)."""
        return idx.read(torchvision.datasets.MNIST, split, folder)
