"""The IDX format of the MNIST family: four gzipped files, read by torchvision."""

import gzip
import shutil
import tempfile
from pathlib import Path

from dreamlib._engine.torchvision_import import torchvision
from dreamlib.data.base import from_bytes
from dreamlib.data.fetch import Mirror, PublishedFile
from dreamlib.data.types import LabeledImages

Reader = type[torchvision.datasets.MNIST]


def published(reader: Reader) -> tuple[PublishedFile, ...]:
    """Return the data set's four files with the MD5s listed in torchvision."""
    return tuple(PublishedFile(name, md5) for name, md5 in reader.resources)


def mirrors(reader: Reader) -> tuple[Mirror, ...]:
    """Return the mirrors listed in torchvision."""
    return tuple(Mirror(url) for url in reader.mirrors)


def read(reader: Reader, split: str, folder: Path) -> LabeledImages:
    """Return one split, (N, 1, 28, 28), from the .gz files in ``folder``.

    torchvision reads unpacked files. They are unpacked in a temporary folder, because other files in ``folder`` would
    change the hash of the data.
    """
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / reader.__name__ / "raw"
        raw.mkdir(parents=True)
        for file in published(reader):
            with gzip.open(folder / file.name) as packed, (raw / file.name.removesuffix(".gz")).open("wb") as out:
                shutil.copyfileobj(packed, out)
        dataset = reader(root, train=split == "train", download=False)
    return from_bytes(dataset.data[:, None], dataset.targets, num_classes=len(reader.classes))
