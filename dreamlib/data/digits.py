"""Digits: 1,797 handwritten digits, 8×8 grey, part of scikit-learn (Alpaydin and Kaynak, UCI, 1998).

Small enough for the whole pipeline to run in seconds.
"""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dreamlib.data.base import DATASETS, PublishedDataset
from dreamlib.data.fetch import LocalFolder, PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages

FILE = PublishedFile("digits.csv.gz", "9b335364a7bfd63947c7480a5bd51f2d")
BRIGHTEST = 16  # a pixel counts the inked cells of a 4×4 block


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits(PublishedDataset):
    """About 1,440 training and 360 test images of the digits 0 to 9.

    The published file has no test split: the last fifth of each class, in file order, is the test set here, so that
    every run is tested on the same images.
    """

    name: ClassVar[str] = "digits"

    @property
    def info(self) -> DatasetInfo:
        """Ten digits, 8×8; a mirrored digit is not a digit, so ``flip`` is False."""
        return DatasetInfo(self.name, tuple("0123456789"), 1, 8, mean=(0.3053,), std=(0.3755,), flip=False)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the single table."""
        return (FILE,)

    def sources(self) -> tuple[Source, ...]:
        """Return the installed scikit-learn."""
        folder = importlib.resources.files("sklearn") / "datasets" / "data"
        return (LocalFolder("installed scikit-learn", Path(str(folder))),)

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 1, 8, 8) in file order; each line of the file holds 64 pixels and the label."""
        table = np.loadtxt(folder / FILE.name, delimiter=",", dtype=np.float32)  # (1797, 65)
        labels = torch.from_numpy(table[:, -1]).to(torch.int64)
        images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8)).contiguous().div_(BRIGHTEST)
        all_images = LabeledImages(images, labels, num_classes=10)
        is_test = torch.zeros(len(labels), dtype=torch.bool)  # (1797,)
        for label in range(10):
            rows = all_images.of_class(label)
            is_test[rows[len(rows) - len(rows) // 5 :]] = True
        return all_images.subset(torch.nonzero(is_test if split == "test" else ~is_test).flatten())
