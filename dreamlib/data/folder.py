"""The user's own images, one subfolder per class."""

import functools
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import PIL
import torch
from PIL import Image
from torch import Tensor

from dreamlib._engine.files import find_above, write_atomically
from dreamlib.data.base import DATASETS, Dataset, check_split, from_bytes
from dreamlib.data.decoded import Stamps, Tensors, cached, contents, moments, stamps
from dreamlib.data.fetch import DataError, md5_of
from dreamlib.data.image_files import decode
from dreamlib.data.image_folders import Layout, find_layout
from dreamlib.data.types import DatasetInfo, LabeledImages, allocate
from dreamlib.settings import digest

# Exceptions that Pillow's decoders raise for damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
LISTED = 10  # maximum number of unreadable files named in a message
DECODING_VERSION = 1  # increment whenever decoding changes


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Dataset):
    """Images in ``path/<class>/``, or in ``path/train/<class>/`` and ``path/test/<class>/`` (or ``path/val/<class>/``).

    path: absolute, or relative to the working directory or the nearest folder above it that contains it.
    size: side of the images in pixels; larger or oblong ones are scaled down and cropped at the centre.
    channels: 1 (grey) or 3 (colour).
    test_fraction: fraction of each class that is the test set if there are no folders train and test. Images are chosen
        by a hash of the file name, so that adding images changes the split of few others.
    mean, std: statistics per channel that normalise the pixels, which lie in [0, 1]; by default those of the training
        images.
    like: a data set whose mean and std are used instead, for example cifar10.

    For other layouts see ``image_folders``; for the conversion of files see ``image_files``. Raise ValueError for an
    invalid option.
    """

    path: str = ""
    size: int = 32
    channels: int = 3
    test_fraction: float = 0.2
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    like: str = ""
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
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Raise ValueError for statistics that do not suit the images."""
        if self.like:
            if self.mean or self.std:
                raise ValueError(f"like: {self.like} sets mean and std to those of that data set; do not give both")
            if DATASETS[self.like] is Folder:
                raise ValueError(
                    "like: folder has no fixed statistics; choose a published data set, or give mean and std"
                )
            if (channels := DATASETS[self.like]().info.channels) != self.channels:
                raise ValueError(f"like: {self.like} has {channels} channels, not {self.channels}; give mean and std")
        elif self.mean or self.std:
            if not len(self.mean) == len(self.std) == self.channels:
                raise ValueError(
                    f"mean {list(self.mean)} and std {list(self.std)} need one number per channel: {self.channels}"
                )
            if not all(0 <= mean <= 1 for mean in self.mean) or not all(0 < std <= 1 for std in self.std):
                raise ValueError(
                    f"mean {list(self.mean)} and std {list(self.std)} must be for pixels in [0, 1]: mean from 0 to 1, "
                    "std above 0 and at most 1; divide those for pixels up to 255 by 255"
                )

    @property
    def info(self) -> DatasetInfo:
        """See ``info_in``, without a cache of decoded images."""
        return self.info_in(None)

    def info_in(self, data_dir: str | Path | None) -> DatasetInfo:
        """Return the sorted folder names as classes, with the given mean and std or those of the training images.

        ``flip`` is True, which suits photographs but not writing. ``data_dir`` and errors are those of ``load``.
        """
        files = self._files("train")
        if self.like:
            other = DATASETS[self.like]().info
            mean, std = other.mean, other.std
        elif self.mean:
            mean, std = self.mean, self.std
        else:
            mean, std = _statistics(stamps(_flat(files)), self.size, self.channels, self._cache_path("train", data_dir))
        return DatasetInfo(self.name, tuple(files), self.channels, self.size, mean=mean, std=std, flip=True)

    def load(self, split: str, data_dir: str | Path | None = None) -> LabeledImages:
        """Return (N, channels, size, size), ordered by class and file name.

        data_dir: the folder of all data sets. Its folder .decoded caches the decoded images for the next process; they
            are decoded again when the files or the options change. None caches nothing.

        Raise DataError for a missing or empty folder, fewer than two classes, a class without images, different classes
        in train/ and test/, and for unreadable files, all in one message.
        """
        check_split(split)
        files, cache_path = self._files(split), self._cache_path(split, data_dir)
        labels = [label for label, paths in enumerate(files.values()) for _ in paths]
        images = _decoded(stamps(_flat(files)), ("images",), self.size, self.channels, cache_path)["images"]
        return from_bytes(images, labels, num_classes=len(files))

    def _cache_path(self, split: str, data_dir: str | Path | None) -> Path | None:
        """Return the cache file of a split: one per folder, size and number of channels."""
        name = f"{self.name}-{split}-{digest(self.folder(), self.size, self.channels)}.safetensors"
        return None if data_dir is None else Path(data_dir) / ".decoded" / name

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
        return [Path(path) for split in ("train", "test") for path in _flat(self._files(split))]

    def folder(self, data_dir: str | Path = "data") -> Path:
        """Return the folder that ``path`` names; raise DataError if there is none."""
        folder = find_above(self.path)
        if folder is None or not folder.is_dir():
            raise DataError(
                f"no folder {self.path} in {Path.cwd()} or above it: correct the option path of data set 'folder'"
            )
        return folder

    def layout(self, split: str) -> dict[str, tuple[Path, ...]]:
        """Return the files of 'train' or 'test' by class, in loading order; raise DataError as ``load`` does."""
        return {name: tuple(map(Path, files)) for name, files in self._files(split).items()}

    def _files(self, split: str) -> Layout:
        """Return ``layout`` with strings: for many images, creating ``Path`` objects would take most of the time."""
        train, test = find_layout(self.folder())
        if test is not None:
            return train if split == "train" else test
        return {name: self._part(files, split) for name, files in train.items()}

    def _part(self, files: tuple[str, ...], split: str) -> tuple[str, ...]:
        held_out = round(len(files) * self.test_fraction)
        if not 0 < held_out < len(files):
            raise DataError(
                f"{Path(files[0]).parent} has {len(files)} images, {held_out} of them for testing at test_fraction "
                f"{self.test_fraction}: training and test need one each; add images or change test_fraction"
            )
        by_hash = sorted(files, key=lambda path: hashlib.sha256(os.path.basename(path).encode()).digest())
        test_files = set(by_hash[:held_out])
        return tuple(path for path in files if (path in test_files) == (split == "test"))


def _flat(files: Layout) -> list[str]:
    return [path for paths in files.values() for path in paths]


def _read(paths: Sequence[Path], size: int, channels: int) -> Tensor:
    """Return (N, channels, size, size) bytes; raise one DataError for all unreadable files."""
    images = allocate("the images", (len(paths), channels, size, size), torch.uint8)
    unreadable: list[str] = []
    for row, path in enumerate(paths):
        try:
            images[row] = decode(path, size, channels)
        except UNREADABLE as error:
            unreadable.append(f"\n  - {path}: {error}")
    if unreadable:
        count, listed = len(unreadable), "".join(unreadable[:LISTED])
        more = f"\n  ... and {count - LISTED} more" if count > LISTED else ""
        raise DataError(f"{count} files are not readable images; repair or remove them:{listed}{more}")
    return images


def _decoded(files: Stamps, names: Sequence[str], size: int, channels: int, cache_path: Path | None) -> Tensors:
    """Return the tensors ``names`` of the files: 'images' (N, C, H, W), and their 'mean' and 'std' (C,)."""

    def decode_all() -> Tensors:
        paths = [path for path, *_ in files]
        images = _read([Path(path) for path in paths], size, channels)
        if stamps(paths) != files:
            raise DataError(f"images below {Path(paths[0]).parent.parent} changed while they were read: run again")
        mean, std = moments(images)
        return {"images": images, "mean": mean, "std": std}

    if cache_path is None:
        return decode_all()
    key = digest(DECODING_VERSION, PIL.__version__, size, channels, contents(files))
    return cached(cache_path, key, names, decode_all)


@functools.lru_cache(maxsize=4)
def _statistics(
    files: Stamps, size: int, channels: int, cache_path: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel; the stamps are part of the cache key, so changed files are read again."""
    tensors = _decoded(files, ("mean", "std"), size, channels, cache_path)
    return tuple(tensors["mean"].tolist()), tuple(tensors["std"].tolist())
