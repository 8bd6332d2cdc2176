"""CutMix: replace one box of every image of a batch by that of another image (Yun et al., ICCV 2019).

As in augmentation, the random numbers are drawn first and applied afterwards.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CutMixDraw:
    """The random numbers of one batch of n images.

    box: top, bottom, left, right in pixels, the same for all images; bottom and right are exclusive.
    partner: (n,), the row whose box each image receives.
    lam: share of pixels that an image keeps.
    """

    box: tuple[int, int, int, int]
    partner: Tensor
    lam: float


def draw_cutmix(count: int, size: tuple[int, int], rng: torch.Generator, probability: float = 0.5) -> CutMixDraw | None:
    """Return the random numbers of ``cutmix`` for ``count`` images of ``size`` (H, W); None if it is not applied."""
    if torch.rand((), generator=rng).item() >= probability:
        return None
    height, width = size
    # torch's Beta distribution takes no generator; numpy's does, and is seeded from ``rng``.
    numpy_rng = np.random.default_rng(torch.randint(2**62, (), generator=rng).item())
    side = math.sqrt(1 - numpy_rng.beta(1.0, 1.0))
    middle_y, middle_x = numpy_rng.integers(height), numpy_rng.integers(width)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(middle_y - half_y, 0), min(middle_y + half_y, height)
    left, right = max(middle_x - half_x, 0), min(middle_x + half_x, width)
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return CutMixDraw((top, bottom, left, right), torch.randperm(count, generator=rng), float(lam))


def cutmix(
    images: Tensor, labels: Tensor, rng: torch.Generator, probability: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return (images, labels_a, labels_b, lam); the training loss is lam · loss(labels_a) + (1 − lam) · loss(labels_b).

    images: (N, C, H, W).
    labels: (N,) class numbers or (N, K) probabilities.
    rng: CPU generator of all random numbers.
    probability: of applying CutMix to the batch.

    The box has 1 − Beta(1, 1) of the image's area before it is clipped at the border, and is the same for the whole
    batch, as in IDC. lam is the exact share of pixels kept; it is 1 for a batch that is returned unchanged.

    >>> x, a, b, lam = cutmix(torch.rand(4, 1, 8, 8), torch.arange(4), torch.Generator(), probability=0.0)
    >>> lam, bool((a == b).all())
    (1.0, True)
    """
    draw = draw_cutmix(len(images), tuple(images.shape[2:]), rng, probability)
    if draw is None:
        return images, labels, labels, 1.0
    partner, (top, bottom, left, right) = draw.partner.to(images.device), draw.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, labels, labels[partner], draw.lam


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (H, W), true inside the box (4,): top, bottom, left, right.

    >>> box_mask(torch.tensor([0, 1, 1, 3]), 2, 3).tolist()
    [[False, True, True], [False, False, False]]
    """
    row, column = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    rows, columns = (row >= box[0]) & (row < box[1]), (column >= box[2]) & (column < box[3])
    return rows.unsqueeze(1) & columns
