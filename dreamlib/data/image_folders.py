"""The layout of a user's image folder, inferred from folder names and file suffixes."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dreamlib.data.fetch import DataError
from dreamlib.data.image_files import is_image_name
from dreamlib.errors import listed

log = logging.getLogger(__name__)

Layout = dict[str, tuple[str, ...]]  # class → its image files, both sorted; strings, because there may be many

TEST_SPLITS = ("test", "val", "valid", "validation")  # folders that may hold the test images, next to train
LITTER = ("__macosx", "thumbs.db", "desktop.ini")  # created by operating systems, besides hidden files
ANNOTATIONS = (".csv", ".json", ".txt", ".xml")  # files that data sets have next to their images


@dataclass(frozen=True)
class Contents:
    """What a folder holds, each kind sorted by name; hidden files and ``LITTER`` are left out."""

    folders: list[Path]
    images: list[str]
    annotations: list[Path]
    others: list[Path]

    @classmethod
    def of(cls, folder: Path) -> "Contents":
        """Return what is in ``folder``."""
        contents = cls([], [], [], [])
        with os.scandir(folder) as entries:  # distinguishes files from folders without a stat call each
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name.lower() in LITTER:
                    continue
                if entry.is_file() and is_image_name(entry.name):
                    contents.images.append(entry.path)
                    continue
                kind = contents.others
                if entry.is_dir():
                    kind = contents.folders
                elif entry.is_file() and entry.name.lower().endswith(ANNOTATIONS):
                    kind = contents.annotations
                kind.append(folder / entry.name)
        return contents


def find_layout(root: Path) -> tuple[Layout, Layout | None]:
    """Return the training images by class, and the test images if ``root`` has a folder of them, else None.

    root: a folder of class folders, or of a folder train and one of ``TEST_SPLITS``, in upper or lower case. ``test``
        comes first, if its images have labels. If ``root`` contains only a folder with one of these layouts, that
        folder is used.

    A class folder holds images or a single folder of them. A test folder may also hold images without class folders and
    a table of their classes, as Tiny-ImageNet's val does (see ``_annotated``). Ignored entries are logged once.

    Raise DataError for any other layout, fewer than two classes, a class without images, or different classes in the
    two splits.
    """
    contents = Contents.of(root)
    splits = _split_folders(contents.folders)
    if not splits:
        only_folder = contents.folders[0] if len(contents.folders) == 1 and not contents.images else None
        if only_folder and Contents.of(only_folder).folders:
            _log_once(f"{root} holds one folder, {only_folder.name}, which is read in its place")
            return find_layout(only_folder)
        return _classes(root), None
    if "train" not in splits:
        names = " and ".join(f"{folder.name}/" for folder in splits.values())
        raise DataError(f"{root} has {names} but no train/: add it, or put the classes into {root}")
    train, test_folder = _classes(splits["train"]), _test_folder(root, splits)
    test = _annotated(test_folder) if _is_flat(test_folder) else _classes(test_folder)
    if unmatched := sorted(train.keys() ^ test.keys()):
        names = f"train/ and {test_folder.name}/"
        raise DataError(f"{root}: {names} need the same classes; only one has {listed(unmatched)}")
    unused = [folder.name for folder in contents.folders if folder not in (splits["train"], test_folder)]
    if test_folder.name.lower() != "test" or unused:
        rest = f"; not used: {listed(unused)}" if unused else ""
        _log_once(f"{root}: the test images are those of {test_folder.name}/{rest}")
    return train, test


def _split_folders(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the folders that are named like a split of a data set, by their lower-case names."""
    splits: dict[str, Path] = {}
    for folder in folders:
        name = folder.name.lower()
        if name in splits:
            raise DataError(f"{folder.parent} has both {splits[name].name}/ and {folder.name}/: keep one")
        if name in ("train", *TEST_SPLITS):
            splits[name] = folder
    return splits


def _test_folder(root: Path, splits: dict[str, Path]) -> Path:
    """Return the folder of the test images: the first of ``TEST_SPLITS`` with labels."""
    candidates = [splits[name] for name in TEST_SPLITS if name in splits]
    labelled = [folder for folder in candidates if _table(folder).is_file() or not _is_flat(folder)]
    if not labelled:
        unlabelled = f" and, without classes, {listed(folder.name for folder in candidates)}" if candidates else ""
        raise DataError(
            f"{root} has train/{unlabelled}, but no test images: add test/ or val/ with the classes of train/, or set "
            f"the option path to {splits['train']}, which test_fraction then divides"
        )
    if len(labelled) > 1 and labelled[0].name.lower() != "test":
        names = " and ".join(f"{folder.name}/" for folder in labelled)
        raise DataError(f"{root} has {names}: rename the one that holds the test images to test")
    return labelled[0]


def _is_flat(folder: Path) -> bool:
    """Return whether a split has no class folders; its images may lie in a folder ``images``."""
    return all(sub.name == "images" for sub in Contents.of(folder).folders)


def _table(folder: Path) -> Path:
    return folder / f"{folder.name}_annotations.txt"


def _annotated(folder: Path) -> Layout:
    """Return the files by class of a split without class folders, in it or in ``images``.

    Their classes are in a tab-separated table whose first columns are file name and class: Tiny-ImageNet's
    val_annotations.txt.
    """
    table, inside = _table(folder), folder / "images"
    contents = Contents.of(inside if inside.is_dir() else folder)
    images = {os.path.basename(path): path for path in (*contents.images, *map(str, contents.others))}
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line]
    if short := [row[0] for row in rows if len(row) < 2]:
        raise DataError(f"{table}: no class, separated by a tab, for {listed(short)}; correct or remove these lines")
    labels = {row[0]: row[1] for row in rows}
    if unmatched := sorted(labels.keys() ^ images.keys()):
        raise DataError(f"{folder}: the images and {table.name} do not match; only one has {listed(unmatched)}")
    layout: dict[str, list[str]] = {label: [] for label in sorted(set(labels.values()))}
    for name in sorted(images):
        layout[labels[name]].append(images[name])
    return {label: tuple(files) for label, files in layout.items()}


def _classes(folder: Path) -> Layout:
    """Return the files by class of a folder of class folders."""
    contents, layout = Contents.of(folder), Layout()
    annotations, others = [], []
    for sub in contents.folders:
        inside = Contents.of(sub)
        annotations += inside.annotations
        if len(inside.folders) == 1 and not inside.images and not inside.others:  # one level too deep
            inside = Contents.of(inside.folders[0])
            annotations += inside.annotations
        layout[sub.name] = tuple(inside.images)
        others += inside.folders + inside.others
    if others:
        names = listed(path.relative_to(folder).as_posix() for path in others)
        raise DataError(
            f"{folder}: unexpected entries: {names}. A class folder holds images, or a single folder of "
            "them; convert, move or remove the rest"
        )
    if len(layout) < 2:
        names = ", ".join(layout) or "none"
        raise DataError(f"{folder} needs at least two class folders with images in them; found: {names}")
    if empty := [name for name, files in layout.items() if not files]:
        raise DataError(f"{folder}: no images in {listed(empty)}; add some or remove the folder")
    outside = [Path(path) for path in contents.images]
    for kind, paths in (("annotations", annotations), ("images outside the class folders", outside)):
        if paths:
            names = listed(path.relative_to(folder).as_posix() for path in paths)
            _log_once(f"{folder}: {kind} are not used: {names}")
    return layout


@cache
def _log_once(message: str) -> None:
    log.warning(message)
