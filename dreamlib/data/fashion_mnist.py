"""Fashion-MNIST: 70,000 pictures of clothes, 28×28 grey (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dreamlib.data.base import DATASETS
from dreamlib.data.debian import DebianPackage
from dreamlib.data.fetch import LocalFolder, Source
from dreamlib.data.idx import IdxDataset
from dreamlib.data.types import DatasetInfo

NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
# Times in the published gzip headers, in seconds since 1970; Debian's packages lack them.
PACKED_AT = {"train": 1504176606, "t10k": 1504176627}


@DATASETS.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(IdxDataset):
    """60,000 training and 10,000 test images of ten kinds of clothes, in MNIST's format."""

    name: ClassVar[str] = "fashion_mnist"
    reader_name: ClassVar[str] = "FashionMNIST"
    md5s: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }

    @property
    def info(self) -> DatasetInfo:
        """Ten kinds of clothes; a mirrored shoe is still a shoe, so ``flip`` is True."""
        return DatasetInfo(self.name, NAMES, 1, 28, mean=(0.2861,), std=(0.3530,), flip=True)

    def sources(self) -> tuple[Source, ...]:
        """Return the installed Debian package, the package to download, and torchvision's mirrors."""
        mtimes = {file: PACKED_AT[file.split("-")[0]] for file in self.md5s}
        folder = Path("/") / DEBIAN_FOLDER
        installed = LocalFolder(f"installed Debian package ({folder})", folder, mtimes)
        package = DebianPackage("dataset-fashion-mnist", DEBIAN_FOLDER, mtimes)
        return (installed, package, *super().sources())
