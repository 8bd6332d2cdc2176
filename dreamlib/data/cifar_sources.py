"""Sources of CIFAR's canonical files: the published archive, or a folder of PNG files.

The archive includes file names, so both sources give the same content: images in the order of class number, then file
name (as bytes). A split is one safetensors file of three arrays of bytes: images (N, 3, 32, 32), labels (N,), and
file_names, joined by newlines; its metadata hold the SHA-256 of all three.
"""

import hashlib
import pickle
import tarfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dreamlib.data.fetch import DataError, PublishedFile, Source, SourceError, command_for, md5_of

Reader = Any  # torchvision.datasets.CIFAR10 or its subclass CIFAR100; named only where it is used, see lazy_torchvision
Parts = dict[str, np.ndarray]  # the arrays of a split, by name
PARTS = ("images", "labels", "file_names")
# The only callables in a pickled batch: array constructors.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 3 writes bytes in Python 2's protocol
}


def canonical(images: Sequence[np.ndarray], labels: Sequence[int], names: Sequence[str]) -> Parts:
    """Return N images (3, 32, 32), their labels and file names in canonical order.

    >>> parts = canonical(list(np.zeros((3, 3, 32, 32), np.uint8)), [1, 0, 1], ["b.png", "c.png", "a.png"])
    >>> parts["labels"].tolist(), parts["file_names"].tobytes()
    ([0, 1, 1], b'c.png\\na.png\\nb.png')
    """
    encoded = [name.encode() for name in names]
    order = sorted(range(len(encoded)), key=lambda row: (labels[row], encoded[row]))
    return {
        "images": np.stack([images[row] for row in order]),
        "labels": np.array(labels, np.uint8)[order],
        "file_names": np.frombuffer(b"\n".join(encoded[row] for row in order), np.uint8),
    }


def _digest(parts: Parts) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(parts[part])
    return digest.hexdigest()


def read_canonical(path: Path) -> Parts:
    """Return the arrays of a canonical file; raise DataError for a damaged one."""
    remedy = f"Delete it and run {command_for(path.parent)}"
    try:
        with safe_open(path, "numpy") as file:
            parts, digest = {part: file.get_tensor(part) for part in PARTS}, (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error}). {remedy}") from error
    if _digest(parts) != digest:
        raise DataError(f"{path} is damaged: its bytes are not those that were written. {remedy}")
    return parts


@dataclass(frozen=True)
class CanonicalFiles(ABC):
    """A source that makes the canonical files.

    reader: torchvision's class, which lists the published files.
    """

    reader: Reader

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the source in messages."""

    @abstractmethod
    def read(self, split: str, scratch: Path) -> Parts:
        """Return 'train' or 'test' in canonical form; raise SourceError if that fails."""

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Make one file."""
        target = scratch / file.name
        parts = self.read(target.stem, scratch)
        # Not save_file, whose files only their owner can read.
        target.write_bytes(save(parts, {"sha256": _digest(parts)}))
        return target


@dataclass(frozen=True)
class Archive(CanonicalFiles):
    """The published archive.

    origin: where to get it.
    """

    origin: Source

    @property
    def title(self) -> str:
        """The archive's name and place."""
        return f"{self.reader.filename} ({self.origin.title})"

    def read(self, split: str, scratch: Path) -> Parts:
        """See ``CanonicalFiles.read``; the first call gets the archive and verifies its MD5."""
        archive, listed = scratch / self.reader.filename, self.reader.train_list
        if not archive.exists():
            self.origin.get(PublishedFile(self.reader.filename, self.reader.tgz_md5), scratch)
            if (md5 := md5_of(archive)) != self.reader.tgz_md5:
                raise SourceError(f"its MD5 is {md5}, that of the published archive {self.reader.tgz_md5}")
        images, labels, names = [], [], []
        with tarfile.open(archive) as tar:
            for name, _ in self.reader.test_list if split == "test" else listed:
                batch = _unpickled(tar, f"{self.reader.base_folder}/{name}")
                images += list(batch["data"].reshape(-1, 3, 32, 32))
                labels += batch["fine_labels"] if "fine_labels" in batch else batch["labels"]
                names += batch["filenames"]
        return canonical(images, labels, names)


@dataclass(frozen=True)
class PngFolder(CanonicalFiles):
    """A folder with one PNG file per image under its published name: train/<class>/<name>, test/<class>/<name>.

    path: the folder.
    classes: names of the classes, in the order of their numbers.
    """

    path: Path
    classes: Sequence[str]

    @property
    def title(self) -> str:
        """The folder."""
        return str(self.path)

    def read(self, split: str, scratch: Path) -> Parts:
        """See ``CanonicalFiles.read``."""
        images, labels, names = [], [], []
        for label, name in enumerate(self.classes):
            files = sorted((self.path / split / name).glob("*.png"))
            if not files:
                raise SourceError(
                    f"no {self.reader.filename} and no *.png in {split}/{name}/: a folder of images needs "
                    f"train/<class>/ and test/<class>/ for {', '.join(self.classes[:3])}, ..."
                )
            for file in files:
                images.append(_pixels(file))
                labels.append(label)
                names.append(file.name)
        return canonical(images, labels, names)


def _pixels(file: Path) -> np.ndarray:
    """Return a PNG as (3, 32, 32) bytes."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{file} is not a readable image: {error}") from error
    if pixels.shape != (32, 32, 3) or pixels.dtype != np.uint8:
        raise SourceError(f"{file} has shape {pixels.shape} of {pixels.dtype}; CIFAR's are (32, 32, 3) of uint8")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays and plain values; any other name is refused, so that reading runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the few callables that an array needs."""
        if (module, name) not in ALLOWED:
            raise SourceError(f"its pickle requests {module}.{name}, which no batch of images needs; it is not read")
        return super().find_class(module, name)


def _unpickled(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    """Return a batch of the archive."""
    with tar.extractfile(name) as file, warnings.catch_warnings():  # type: ignore[union-attr]
        # Python 2 wrote these pickles with a dtype flag of 0, for which numpy 2.4.0 to 2.4.4 warn.
        category = np.exceptions.VisibleDeprecationWarning
        warnings.filterwarnings("ignore", message=".*align should be passed", category=category)
        return _ArrayUnpickler(file, encoding="latin1").load()
