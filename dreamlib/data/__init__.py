"""Data sets by name: one file of this package each, found and registered when the package is imported.

A new data set is one new module with a frozen dataclass derived from ``Dataset`` (or ``PublishedDataset``), decorated
with ``@DATASETS.register(name)``; nothing else has to change.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlib._engine.registry import configured
from dreamlib._engine.seeding import generator
from dreamlib.data.base import DATASETS, Dataset
from dreamlib.data.fetch import DataError, md5_of
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import unknown

__all__ = ["DATASETS", "DataError", "Dataset", "create", "data_hash", "info", "load_split", "validation_rows"]

SPLITS = ("train", "validation", "test")

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")


def create(name: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """The data set ``name`` with its options, as they come from params.yaml.

    Raises UnknownNameError, with the nearest match, for an unknown data set or option; ValueError for a wrong value.

    >>> create("folder", {"sise": 32})
    Traceback (most recent call last):
        ...
    dreamlib._engine.registry.UnknownNameError: unknown option of data set 'folder' 'sise': did you mean 'size'?...
    """
    return configured(DATASETS[name], options or {}, f"data set '{name}'")


def info(name: str, options: Mapping[str, Any] | None = None) -> DatasetInfo:
    """Classes, shape and normalisation of a data set. No file is read, except for 'folder', which has to look.

    >>> info("fashion_mnist").num_classes, info("svhn").flip
    (10, False)
    """
    return create(name, options).info


def load_split(
    name: str,
    split: str,
    data_dir: str | Path,
    validation_per_class: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> LabeledImages:
    """One split of a data set: (N, C, H, W) float32 in [0, 1], in file order.

    'validation' is ``validation_per_class`` images of each class, drawn from the training data by ``seed``; 'train' is
    the rest; 'test' is the published test set, which only the evaluation may read. Choices are made on 'validation', so
    that test accuracy stays an answer and never becomes a criterion.

    Raises UnknownNameError for an unknown name, split or option; ValueError when ``validation_per_class`` is negative,
    is 0 though 'validation' is asked for, or leaves a class without training images; DataError when files are
    missing or wrong.

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
            f"split '{split}'; raise it in params.yaml"
        )
    dataset = create(name, options)
    if split == "test":
        return dataset.load("test", data_dir)
    train = dataset.load("train", data_dir)
    held_out = torch.zeros(len(train), dtype=torch.bool)  # (N,)
    held_out[validation_rows(train, validation_per_class, seed, dataset.info.classes)] = True
    return train.subset(torch.nonzero(held_out if split == "validation" else ~held_out).flatten())


def validation_rows(train: LabeledImages, per_class: int, seed: int, names: Sequence[str] = ()) -> Tensor:
    """Row numbers (K·``per_class``,), class by class, that are held out of the training data for a given seed.

    Raises ValueError when a class, called as in ``names``, would keep no image to train on.
    """
    rng = generator(seed, "validation-split")
    rows = [train.of_class(label) for label in range(train.num_classes)]
    fewest = min(range(train.num_classes), key=lambda label: len(rows[label]))
    if per_class >= max(1, len(rows[fewest])):
        name = f"'{names[fewest]}'" if names else fewest
        raise ValueError(
            f"validation_per_class is {per_class}, but class {name} has only {len(rows[fewest])} training images and "
            f"must keep one: lower it to at most {max(0, len(rows[fewest]) - 1)} or add images"
        )
    return torch.cat([r[torch.randperm(len(r), generator=rng)[:per_class]] for r in rows])


def data_hash(name: str, data_dir: str | Path, options: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over the names and MD5s of a data set's files: the version of the data that a run record names.

    It depends on what the files hold, not on where they lie. Raises DataError when they are missing or wrong.

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
