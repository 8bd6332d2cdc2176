"""Decoded images on disk, so that a user's image files are decoded once and not by every process.

A cached file is used only if its key, which covers the content of every image file, matches and its bytes are intact.
If it cannot be written, nothing is cached.
"""

import functools
import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamlib.data.types import CHUNK

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
Stamps = tuple[tuple[str, int, int, int], ...]  # the path of each file, its size and times of change


def stamps(paths: Iterable[str]) -> Stamps:
    """Return the current stamp of each file: a changed file has another size or time."""
    stats = ((path, os.stat(path)) for path in paths)
    return tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)


@functools.lru_cache(maxsize=4)
def contents(files: Stamps) -> tuple[str, ...]:
    """Return the MD5 of each file, '' for unreadable ones; cached by stamps, so that changed files are read again."""
    return tuple(_md5(path) for path, *_ in files)


def _md5(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # read whole, unbuffered: opening dominates
            return hashlib.md5(file.readall(), usedforsecurity=False).hexdigest()
    except OSError:  # reported when the files are decoded
        return ""


def cached(path: Path, key: str, names: Iterable[str], make: Callable[[], Tensors]) -> Tensors:
    """Return the tensors ``names`` of ``make()``, read from ``path`` if stored there under ``key``.

    Otherwise call ``make`` and write ``path`` for the next process, atomically.
    """
    if (stored := _read(path, key, names)) is not None:
        return stored
    decoded = make()
    _write(path, key, decoded)
    return {name: decoded[name] for name in names}


def _read(path: Path, key: str, names: Iterable[str]) -> Tensors | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names} if metadata.get("key") == key else None
    except (OSError, SafetensorError):  # missing, damaged or unreadable: decoded again
        return None
    if tensors is None or any(metadata.get(name) != _sha256(tensor) for name, tensor in tensors.items()):
        return None
    return tensors


def _write(path: Path, key: str, tensors: Tensors) -> None:
    metadata = {"key": key} | {name: _sha256(tensor) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
            save_file(tensors, Path(scratch) / path.name, metadata)
            os.replace(Path(scratch) / path.name, path)
    except (OSError, SafetensorError) as error:
        log.info("decoded images are not cached in %s: %s", path.parent, error)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy()).hexdigest()


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (C,) float64, of byte images (N, C, H, W) as pixels in [0, 1].

    Sums of bytes are integers, hence exact whatever the order. A constant channel gets the deviation 1 and so is not
    scaled: dividing by 0 would give NaN.

    >>> moments(torch.tensor([0, 255, 255, 0, 7, 7, 7, 7], dtype=torch.uint8).view(1, 2, 2, 2))
    (tensor([0.5000, 0.0275], dtype=torch.float64), tensor([0.5000, 1.0000], dtype=torch.float64))
    """
    total = square = torch.zeros(images.shape[1], dtype=torch.int64)
    for chunk in images.split(CHUNK):
        wide = chunk.to(torch.int32)
        total, square = total + wide.sum((0, 2, 3)), square + wide.square().sum((0, 2, 3))
    count, sums = images[:, 0].numel(), list(zip(total.tolist(), square.tolist(), strict=True))
    scale = 255 * count
    # Python's integers do not overflow: for millions of images the products would.
    mean = torch.tensor([added / scale for added, _ in sums], dtype=torch.float64)
    std = [math.sqrt(count * squares - added**2) / scale or 1.0 for added, squares in sums]
    return mean, torch.tensor(std, dtype=torch.float64)
