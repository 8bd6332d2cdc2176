"""Canvases that store images as coefficients of the discrete cosine transform at selected frequencies (FreD).

After Shin, Shin & Moon, "Frequency Domain-based Dataset Distillation", NeurIPS 2023.
"""

import math
from functools import cache

import torch
from torch import Tensor

from dreamlib.data.types import as_float

TRANSFORM_BATCH = 4096  # images transformed at a time


@cache
def _basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    k, x = torch.arange(size, dtype=torch.float64).view(-1, 1), torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * x + 1) * k / (2 * size)) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.to(device, dtype)


def dct(images: Tensor) -> Tensor:
    """Return the orthonormal two-dimensional DCT-II of images (…, H, W): same shape, same sum of squares.

    Coefficient [0, 0] is √(H·W) times the mean.

    >>> dct(torch.ones(1, 2, 2)).round(decimals=6).tolist()
    [[[2.0, 0.0], [0.0, 0.0]]]
    """
    rows, columns = (_basis(size, images.dtype, images.device) for size in images.shape[-2:])
    return rows @ images @ columns.T


def inverse_dct(coefficients: Tensor) -> Tensor:
    """Return the images (…, H, W) whose ``dct`` is ``coefficients``; differentiable.

    >>> x = torch.rand(3, 4, 5, dtype=torch.float64)
    >>> torch.allclose(inverse_dct(dct(x)), x)
    True
    """
    rows, columns = (_basis(size, coefficients.dtype, coefficients.device) for size in coefficients.shape[-2:])
    return rows.T @ coefficients @ columns


def mask_floats(height: int, width: int) -> int:
    """Return the storage of the mask of selected frequencies, one bit per frequency, in 32-bit floats, rounded up.

    >>> mask_floats(28, 28)
    25
    """
    return math.ceil(height * width / 32)


def max_frequencies(canvases: int, factor: int, shape: tuple[int, int, int]) -> int:
    """Return how many frequencies fit into the storage of the canvases, after that of the mask.

    canvases: number of canvases of all classes.
    factor: each canvas stores factor² images.
    shape: (C, H, W) of a canvas.

    Raise ValueError if no frequency fits.

    >>> max_frequencies(10, 2, (1, 28, 28)), max_frequencies(500, 3, (3, 32, 32))
    (195, 113)
    """
    channels, height, width = shape
    count = (canvases * channels * height * width - mask_floats(height, width)) // (canvases * factor**2 * channels)
    if count < 1:
        raise ValueError(f"factor {factor} leaves no frequency of a {height}×{width} image: choose a smaller factor")
    return count


def strongest_frequencies(images: Tensor, count: int) -> Tensor:
    """Return the ``count`` frequencies with the largest mean square over images (N, C, H, W), bytes or floating point.

    Frequencies are given as ascending positions in H·W.

    >>> strongest_frequencies(torch.ones(1, 1, 4, 4), 1).tolist()
    [0]
    """
    parts = images.split(TRANSFORM_BATCH)
    energy = torch.stack([dct(as_float(part)).double().square().sum((0, 1)) for part in parts]).sum(0)
    return energy.flatten().argsort(descending=True, stable=True)[:count].sort().values


def pack(images: Tensor, frequencies: Tensor, factor: int) -> Tensor:
    """Store factor² images in each canvas as their coefficients at ``frequencies``.

    images: (n·factor², C, H, W).
    frequencies: (k,) positions in H·W.
    factor: a canvas stores factor² images.

    Return (n, C, H, W). The last H·W − factor²·k numbers of each channel are zero and do not count as storage.
    """
    _, c, h, w = images.shape
    selected = dct(images).flatten(2)[..., frequencies].view(-1, factor**2, c, len(frequencies)).transpose(1, 2)
    canvases = images.new_zeros(len(selected), c, h * w)
    canvases[..., : factor**2 * len(frequencies)] = selected.flatten(2)
    return canvases.view(-1, c, h, w)


def unpack(canvases: Tensor, frequencies: Tensor, factor: int) -> Tensor:
    """Return the images (n·factor², C, H, W) of canvases made by ``pack``, clamped to [0, 1]; differentiable.

    >>> images = torch.rand(4, 1, 6, 6) / 2 + 0.25
    >>> restored = unpack(pack(images, torch.arange(36), 1), torch.arange(36), 1)
    >>> torch.allclose(restored, images, atol=1e-6)
    True
    """
    n, c, h, w = canvases.shape
    k = len(frequencies)
    selected = canvases.flatten(2)[..., : factor**2 * k].view(n, c, factor**2, k).transpose(1, 2)
    spectrum = canvases.new_zeros(n, factor**2, c, h * w).index_copy(3, frequencies, selected)
    return inverse_dct(spectrum.view(n * factor**2, c, h, w)).clamp(0, 1)
