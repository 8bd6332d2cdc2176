"""Fashion-MNIST: 70,000 pictures of clothes, 28×28 grey (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dreamlib._engine.torchvision_import import torchvision
from dreamlib.data import idx
from dreamlib.data.base import DATASETS, PublishedDataset
from dreamlib.data.debian import DebianFolder, DebianPackage
from dreamlib.data.fetch import PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages

DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
# Times in the published gzip headers, in seconds since 1970; Debian's packages lack them.
PACKED_AT = {"train": 1504176606, "t10k": 1504176627}


@DATASETS.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(PublishedDataset):
    """60,000 training and 10,000 test images of ten kinds of clothes, in MNIST's format."""

    name: ClassVar[str] = "fashion_mnist"

    @property
    def info(self) -> DatasetInfo:
        """Ten kinds of clothes; a mirrored shoe is still a shoe, so ``flip`` is True."""
        classes = tuple(torchvision.datasets.FashionMNIST.classes)
        return DatasetInfo(self.name, classes, 1, 28, mean=(0.2861,), std=(0.3530,), flip=True)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the four IDX files."""
        return idx.published(torchvision.datasets.FashionMNIST)

    def sources(self) -> tuple[Source, ...]:
        """Return the installed Debian package, the package to download, and torchvision's mirrors."""
        mtimes = {file.name: PACKED_AT[file.name.split("-")[0]] for file in self.files()}
        installed = DebianFolder(Path("/") / DEBIAN_FOLDER, mtimes)
        package = DebianPackage("dataset-fashion-mnist", DEBIAN_FOLDER, mtimes)
        return (installed, package, *idx.mirrors(torchvision.datasets.FashionMNIST))

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 1, 28, 28)."""
        return idx.read(torchvision.datasets.FashionMNIST, split, folder)
