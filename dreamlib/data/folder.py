"""The user's own images, one subfolder per class."""

import functools
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreamlib._engine.files import find_above, write_atomically
from dreamlib.data.base import DATASETS, Dataset, check_split, from_bytes
from dreamlib.data.fetch import DataError, md5_of
from dreamlib.data.types import DatasetInfo, LabeledImages

# Exceptions that Pillow's decoders raise for damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
LISTED = 10  # unreadable files named in a message, at most

Layout = dict[str, tuple[Path, ...]]  # class → its image files, both sorted


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Dataset):
    """Images in ``path/<class>/``, or in ``path/train/<class>/`` and ``path/test/<class>/`` if both folders exist.

    path: absolute, or relative to the working directory or the nearest folder above it that contains it.
    size: side of the images in pixels; larger or oblong ones are scaled down and cropped at the centre.
    channels: 1 (grey) or 3 (colour).
    test_fraction: fraction of each class that is the test set if there are no folders train and test. Images are chosen
        by a hash of the file name, so that adding images changes the split of few others.

    Images are rotated by their EXIF orientation and transparent pixels become white. Hidden files and files outside the
    class folders are ignored; every other file must be a readable image. Raise ValueError for an invalid option.
    """

    path: str = ""
    size: int = 32
    channels: int = 3
    test_fraction: float = 0.2
    name: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data set 'folder' needs the option path: a folder with one subfolder per class")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; choose 1 (grey) or 3 (colour)")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1 pixel")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; it must lie between 0 and 1, both exclusive")

    @property
    def info(self) -> DatasetInfo:
        """Classes are the sorted folder names; mean and std are computed from the training images, once per process.

        ``flip`` is True, which suits photographs but not writing. Raise DataError as ``load`` does.
        """
        layout = self.layout("train")
        stamps = tuple((path, path.stat().st_mtime_ns) for files in layout.values() for path in files)
        mean, std = _statistics(stamps, self.size, self.channels)
        return DatasetInfo(self.name, tuple(layout), self.channels, self.size, mean=mean, std=std, flip=True)

    def load(self, split: str, data_dir: str | Path = "data") -> LabeledImages:
        """Return (N, channels, size, size), ordered by class and file name; ``data_dir`` is not used.

        Raise DataError for a missing or empty folder, fewer than two classes, a class without images, different classes
        in train/ and test/, and for unreadable files, all in one message.
        """
        check_split(split)
        layout = self.layout(split)
        labels = [label for label, files in enumerate(layout.values()) for _ in files]
        images = _read((path for files in layout.values() for path in files), self.size, self.channels)
        return from_bytes(images, labels, num_classes=len(layout))

    def fetch(self, data_dir: str | Path, source: str | Path | None = None) -> list[Path]:
        """Check that the images are readable and return their paths; there is nothing to fetch.

        Write their MD5s to ``data_dir``/folder/images.md5, in the format of md5sum. The images may lie outside the
        project; this file shows their changes to DVC.
        """
        for split in ("train", "test"):
            self.load(split, data_dir)
        paths, root = self.paths(data_dir), self.folder()
        lines = sorted(f"{md5_of(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
        write_atomically(Path(data_dir) / self.name / "images.md5", "".join(lines).encode())
        return paths

    def paths(self, data_dir: str | Path) -> list[Path]:
        """Return all image files, those for training first."""
        return [path for split in ("train", "test") for files in self.layout(split).values() for path in files]

    def folder(self, data_dir: str | Path = "data") -> Path:
        """Return the folder that ``path`` names; raise DataError if there is none."""
        folder = find_above(self.path)
        if folder is None or not folder.is_dir():
            raise DataError(
                f"no folder {self.path} in {Path.cwd()} or above it: correct the option path of data set 'folder'"
            )
        return folder

    def layout(self, split: str) -> Layout:
        """Return the files of 'train' or 'test' by class, in loading order; raise DataError as ``load`` does."""
        root = self.folder()
        split_exists = [(root / name).is_dir() for name in ("train", "test")]
        if all(split_exists):
            layouts = {name: _classes(root / name) for name in ("train", "test")}
            if unmatched := sorted(layouts["train"].keys() ^ layouts["test"].keys()):
                raise DataError(f"{root}: train/ and test/ need the same classes; only one has {', '.join(unmatched)}")
            return layouts[split]
        if any(split_exists):
            raise DataError(f"{root} has only one of train/ and test/: add the other, or put the classes into {root}")
        return {name: self._part(root, name, files, split) for name, files in _classes(root).items()}

    def _part(self, root: Path, name: str, files: tuple[Path, ...], split: str) -> tuple[Path, ...]:
        held_out = round(len(files) * self.test_fraction)
        if not 0 < held_out < len(files):
            raise DataError(
                f"{root / name} has {len(files)} images, {held_out} of them for testing at test_fraction "
                f"{self.test_fraction}: training and test need one each; add images or change test_fraction"
            )
        by_hash = sorted(files, key=lambda path: hashlib.sha256(path.name.encode()).digest())
        test_files = set(by_hash[:held_out])
        return tuple(path for path in files if (path in test_files) == (split == "test"))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path) -> Layout:
    """Return the files by class; raise DataError for fewer than two classes or an empty one."""
    layout = {sub.name: tuple(_visible(sub)) for sub in _visible(folder) if sub.is_dir()}
    if len(layout) < 2:
        names = ", ".join(layout) or "none"
        raise DataError(f"{folder} needs at least two class folders with images in them; found: {names}")
    if empty := [name for name, files in layout.items() if not files]:
        raise DataError(f"{folder}: no images in {', '.join(empty)}; add some or remove the folder")
    return layout


def _read(paths: Iterable[Path], size: int, channels: int) -> Tensor:
    """Return (N, channels, size, size) bytes; raise one DataError for all unreadable files."""
    images: list[Tensor] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            images.append(_decode(path, size, channels))
        except UNREADABLE as error:
            unreadable.append(f"\n  - {path}: {error}")
    if unreadable:
        count, listed = len(unreadable), "".join(unreadable[:LISTED])
        more = f"\n  ... and {count - LISTED} more" if count > LISTED else ""
        raise DataError(f"{count} files are not readable images; repair or remove them:{listed}{more}")
    return torch.stack(images)


def _decode(path: Path, size: int, channels: int) -> Tensor:
    """Return an image as (channels, size, size) bytes."""
    with Image.open(path) as original:
        image = ImageOps.exif_transpose(original)
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit values at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)


@functools.lru_cache(maxsize=4)
def _statistics(
    stamps: tuple[tuple[Path, int], ...], size: int, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel; the time stamps are part of the cache's key, so changed files are read again."""
    pixels = _read((path for path, _ in stamps), size, channels).to(torch.float64).div_(255)  # (N, C, H, W)
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)
    # A constant channel is not scaled: dividing by 0 would give NaN.
    std[std == 0] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
