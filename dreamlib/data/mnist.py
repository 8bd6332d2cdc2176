"""MNIST: 70,000 handwritten digits, 28×28 grey (LeCun, Cortes and Burges, 1998)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dreamlib.data.base import DATASETS
from dreamlib.data.idx import IdxDataset
from dreamlib.data.types import DatasetInfo


@DATASETS.register("mnist")
@dataclass(frozen=True)
class Mnist(IdxDataset):
    """60,000 training and 10,000 test images of the digits 0 to 9."""

    name: ClassVar[str] = "mnist"
    reader_name: ClassVar[str] = "MNIST"
    md5s: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    @property
    def info(self) -> DatasetInfo:
        """Ten digits; a mirrored digit is not a digit, so ``flip`` is False."""
        return DatasetInfo(self.name, tuple("0123456789"), 1, 28, mean=(0.1307,), std=(0.3081,), flip=False)
