"""Data sets by name, one per module of this package; importing the package imports and registers all of them.

To add a data set, add a module with a frozen dataclass derived from ``Dataset`` or ``PublishedDataset`` and decorated
with ``@DATASETS.register(name)``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlib._engine.registry import configured, import_modules
from dreamlib._engine.seeding import generator
from dreamlib.data.base import DATASETS, Dataset
from dreamlib.data.fetch import DataError, md5_of
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import unknown

__all__ = ["DATASETS", "DataError", "Dataset", "create", "data_hash", "info", "load_split", "validation_rows"]

SPLITS = ("train", "validation", "test")

import_modules(__name__, __path__)


def create(name: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """Return the data set registered as ``name``, with the given options.

    Raise UnknownNameError, with the nearest match, for an unknown data set or option; ValueError for an invalid value.

    >>> create("folder", {"sise": 32})
    Traceback (most recent call last):
        ...
    dreamlib.errors.UnknownNameError: unknown option 'sise' of data set 'folder': did you mean 'size'?...
    """
    return configured(DATASETS[name], options or {}, f"data set '{name}'")


def info(name: str, options: Mapping[str, Any] | None = None, data_dir: str | Path | None = None) -> DatasetInfo:
    """Return classes, shape and normalisation of a data set.

    Only 'folder' reads its files for this, and caches decoded images below ``data_dir``, the folder of all data sets.

    >>> info("fashion_mnist").num_classes, info("svhn").flip
    (10, False)
    """
    return create(name, options).info_in(data_dir)


def load_split(
    name: str,
    split: str,
    data_dir: str | Path,
    validation_per_class: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> LabeledImages:
    """Return one split of a data set, in file order; ``pixels()`` of it is (N, C, H, W) float32 in [0, 1].

    name, options: see ``create``.
    split: 'test' is the published test set, for evaluation only. 'validation' is held out of the published training
        set, for every choice that is made by accuracy. 'train' is the rest of the training set.
    data_dir: the folder of all data sets.
    validation_per_class: number of images per class that are held out.
    seed: seed of the random choice of the held-out images.

    Raise UnknownNameError for an unknown name, split or option; ValueError if ``validation_per_class`` is negative, is
    0 for the split 'validation', or leaves a class without training images; DataError for missing or wrong files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as data_dir:
    ...     files = create("digits").fetch(data_dir)
    ...     held_out = load_split("digits", "validation", data_dir, validation_per_class=20, seed=0)
    >>> tuple(held_out.images.shape), held_out.labels.bincount().unique().tolist()
    ((200, 1, 8, 8), [20])
    """
    if split not in SPLITS:
        raise unknown("split", split, list(SPLITS))
    if validation_per_class < 0 or (split == "validation" and validation_per_class == 0):
        raise ValueError(
            f"validation_per_class is {validation_per_class}: at least {int(split == 'validation')} is needed for "
            f"split '{split}'; increase it"
        )
    dataset = create(name, options)
    if split == "test":
        return dataset.load("test", data_dir)
    train = dataset.load("train", data_dir)
    held_out = torch.zeros(len(train), dtype=torch.bool)  # (N,)
    held_out[validation_rows(train, validation_per_class, seed, lambda: dataset.info_in(data_dir).classes)] = True
    return train.subset(torch.nonzero(held_out if split == "validation" else ~held_out).flatten())


def validation_rows(train: LabeledImages, per_class: int, seed: int, names: Callable[[], Sequence[str]]) -> Tensor:
    """Return the rows (K·``per_class``,) that are held out of the training data, class by class.

    Raise ValueError, with the class's name from ``names()``, if a class would be left without training images.
    """
    rng = generator(seed, "validation-split")
    class_rows = [train.of_class(label) for label in range(train.num_classes)]
    smallest = min(range(train.num_classes), key=lambda label: len(class_rows[label]))
    count = len(class_rows[smallest])
    if per_class >= max(1, count):
        raise ValueError(
            f"validation_per_class is {per_class}, but class '{names()[smallest]}' has only {count} training images "
            f"and must keep one: lower it to at most {max(0, count - 1)} or add images"
        )
    return torch.cat([rows[torch.randperm(len(rows), generator=rng)[:per_class]] for rows in class_rows])


def data_hash(name: str, data_dir: str | Path, options: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of the names and MD5s of a data set's files, which identifies the data in a run's record.

    It depends on the content of the files, not on their location. Raise DataError for missing or wrong files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as data_dir:
    ...     files = create("digits").fetch(data_dir)
    ...     len(data_hash("digits", data_dir))
    64
    """
    dataset = create(name, options)
    folder = dataset.folder(data_dir)
    lines = sorted(f"{path.relative_to(folder).as_posix()} {md5_of(path)}\n" for path in dataset.paths(data_dir))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
