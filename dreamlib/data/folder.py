"""A user's own images: one subfolder per class."""

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

from dreamlib._engine.files import write_atomically
from dreamlib.data.base import DATASETS, Dataset, check_split, from_bytes
from dreamlib.data.fetch import DataError, md5_of
from dreamlib.data.types import DatasetInfo, LabeledImages

# What Pillow's decoders are known to raise for damaged files; anything else is a fault of this module.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
LISTED = 10

Layout = dict[str, tuple[Path, ...]]  # class → its image files, both sorted


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Dataset):
    """Images in ``path/<class>/``, or in ``path/train/<class>/`` and ``path/test/<class>/`` where those two exist.

    ``path`` is absolute, or relative to the working directory or to the nearest folder above it that has it (so that
    notebooks/ and the root agree). Images become ``channels`` (1 grey, 3 colour) × ``size`` × ``size``: turned upright
    as their camera noted, transparency put on white, then shrunk and cropped at the centre. Without train/ and test/ a
    fixed ``test_fraction`` of each class is the test set, chosen by a hash of the file name: adding images moves few
    others. Hidden files are ignored, as are files beside the class folders; every other file must be a readable image.

    Raises ValueError when an option is out of range.
    """

    path: str = ""
    size: int = 32
    channels: int = 3
    test_fraction: float = 0.2
    name: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data set 'folder' needs the option path: the folder that holds one subfolder per class")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; choose 1 (grey) or 3 (colour)")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1 pixel")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; it must lie between 0 and 1, both excluded")

    @property
    def info(self) -> DatasetInfo:
        """Classes by folder name, sorted; mean and std of the training images, which are read once for it.

        Raises DataError as ``load`` does. ``flip`` is True: fine for photographs, wrong for writing.
        """
        layout = self.layout("train")
        stamps = tuple((path, path.stat().st_mtime_ns) for files in layout.values() for path in files)
        mean, std = _statistics(stamps, self.size, self.channels)
        return DatasetInfo(self.name, tuple(layout), self.channels, self.size, mean=mean, std=std, flip=True)

    def load(self, split: str, data_dir: str | Path = "data") -> LabeledImages:
        """(N, channels, size, size), class by class in the order of names; ``data_dir`` plays no part here.

        Raises DataError for a missing or empty folder, fewer than two classes, a class without images, train/ and test/
        that disagree in their classes, and for unreadable files, all of them in one message.
        """
        check_split(split)
        layout = self.layout(split)
        labels = [label for label, files in enumerate(layout.values()) for _ in files]
        images = _read((path for files in layout.values() for path in files), self.size, self.channels)
        return from_bytes(images, labels, num_classes=len(layout))

    def fetch(self, data_dir: str | Path) -> list[Path]:
        """Nothing to fetch: checks that the images are there and readable, and returns their paths.

        Lists their MD5s in ``data_dir``/folder/images.md5, in the format of md5sum: the images may lie anywhere, and
        this is the file whose changes DVC sees.
        """
        for split in ("train", "test"):
            self.load(split, data_dir)
        paths, root = self.paths(data_dir), self.folder()
        listed = sorted(f"{md5_of(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
        write_atomically(Path(data_dir) / self.name / "images.md5", "".join(listed).encode())
        return paths

    def paths(self, data_dir: str | Path) -> list[Path]:
        """All image files, training first."""
        return [path for split in ("train", "test") for files in self.layout(split).values() for path in files]

    def folder(self, data_dir: str | Path = "data") -> Path:
        """Where ``path`` leads. Raises DataError if nowhere."""
        here = Path.cwd()
        for start in (here, *here.parents):
            if (start / self.path).is_dir():
                return start / self.path
        raise DataError(f"no folder {self.path} in {here} or above it: correct the option path of data set 'folder'")

    def layout(self, split: str) -> Layout:
        """Which files of which class make up 'train' or 'test', in loading order. Raises DataError as ``load`` does."""
        root = self.folder()
        halves = [(root / half).is_dir() for half in ("train", "test")]
        if all(halves):
            both = {half: _classes(root / half) for half in ("train", "test")}
            if odd := sorted(both["train"].keys() ^ both["test"].keys()):
                raise DataError(f"{root}: train/ and test/ need the same classes; only one has {', '.join(odd)}")
            return both[split]
        if any(halves):
            raise DataError(f"{root} has only one of train/ and test/: add the other, or put the classes into {root}")
        return {name: self._part(root, name, files, split) for name, files in _classes(root).items()}

    def _part(self, root: Path, name: str, files: tuple[Path, ...], split: str) -> tuple[Path, ...]:
        held_out = round(len(files) * self.test_fraction)
        if not 0 < held_out < len(files):
            raise DataError(
                f"{root / name} has {len(files)} images, {held_out} of them for testing at test_fraction "
                f"{self.test_fraction}: training and test need one each; add images or change test_fraction"
            )
        ranked = sorted(files, key=lambda path: hashlib.sha256(path.name.encode()).digest())
        test = set(ranked[:held_out])
        return tuple(path for path in files if (path in test) == (split == "test"))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path) -> Layout:
    """Class folders and what they hold; raises DataError if there are fewer than two or one is empty."""
    found = {sub.name: tuple(_visible(sub)) for sub in _visible(folder) if sub.is_dir()}
    if len(found) < 2:
        names = ", ".join(found) or "none"
        raise DataError(f"{folder} needs at least two class folders with images in them; found: {names}")
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(f"{folder}: no images in {', '.join(empty)}; add some or remove the folder")
    return found


def _read(paths: Iterable[Path], size: int, channels: int) -> Tensor:
    """(N, channels, size, size) bytes; raises one DataError for all unreadable files: the first ten and how many."""
    images: list[Tensor] = []
    bad: list[str] = []
    for path in paths:
        try:
            images.append(_decode(path, size, channels))
        except UNREADABLE as error:
            bad.append(f"\n  - {path}: {error}")
    if bad:
        more = f"\n  ... and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        raise DataError(f"{len(bad)} files are no readable images; repair or remove them:{''.join(bad[:LISTED])}{more}")
    return torch.stack(images)


def _decode(path: Path, size: int, channels: int) -> Tensor:
    """One image as (channels, size, size) bytes."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        # Pillow cuts 16-bit values off at 255 instead of scaling them.
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
    """Mean and std per channel; the time stamps are in the key so that changed files are read anew."""
    pixels = _read((path for path, _ in stamps), size, channels).to(torch.float64).div_(255)  # (N, C, H, W)
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)
    # A channel without any variation is left unscaled: there is nothing to scale, and dividing by 0 gives NaN.
    std[std == 0] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
