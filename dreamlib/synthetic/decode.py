"""Multi-formation: a stored canvas holds several images at a lower resolution.

After Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 4 (IDC).
"""

import math

import torch.nn.functional as F
from torch import Tensor

BOUND = 128  # maximum number of decoded images per class under the rule 'bound', as in IDC's released code
DECODE_RULES = ("single", "bound", "dct")


def formation(ipc: int, factor: int, rule: str = "single") -> tuple[int, ...]:
    """Return the factor by which each of a class's ``ipc`` canvases is cut.

    ipc: stored canvases per class.
    factor: largest factor; a canvas cut by f holds f² images.
    rule: 'single' and 'dct' cut all canvases by ``factor``. 'bound' cuts the first canvases by ``factor``, the next by
        factor − 1 and so on, as many of each as in IDC's released code: at most ``BOUND`` decoded images per class.

    Raise ValueError for an unknown rule.

    >>> formation(3, 2), formation(40, 3, "bound")[8:14]
    ((2, 2, 2), (3, 2, 2, 2, 2, 1))
    """
    if rule not in DECODE_RULES:
        raise ValueError(f"decode must be one of {', '.join(DECODE_RULES)}; got '{rule}'")
    if rule != "bound":
        return (factor,) * ipc
    factors: list[int] = []
    for f in range(factor, 0, -1):
        remaining = ipc - len(factors)
        # Each remaining canvas yields at least one image; what the bound allows beyond that is spent on finer cuts.
        room = BOUND - sum(g * g for g in factors) - remaining
        factors += [f] * (remaining if f == 1 else min(remaining, max(0, room // (f * f))))
    return tuple(factors)


def decode(canvases: Tensor, factor: int) -> Tensor:
    """Cut each canvas into factor² crops, row-major, and enlarge each crop to the canvas's size; differentiable.

    canvases: (N, C, H, W). A side that ``factor`` does not divide is padded with 0.5 at the bottom or right.
    factor: crops along each side.

    Return (N·factor², C, H, W), the crops of a canvas one after the other.

    >>> import torch
    >>> decode(torch.arange(16.).view(1, 1, 4, 4), 4)[6].unique().item()
    6.0
    """
    if factor == 1:
        return canvases
    n, c, h, w = canvases.shape
    crop_h, crop_w = math.ceil(h / factor), math.ceil(w / factor)
    padded = F.pad(canvases, (0, crop_w * factor - w, 0, crop_h * factor - h), value=0.5)
    crops = padded.view(n, c, factor, crop_h, factor, crop_w).permute(0, 2, 4, 1, 3, 5)  # (N, f, f, C, h, w)
    crops = crops.reshape(n * factor**2, c, crop_h, crop_w)
    return F.interpolate(crops, size=(h, w), mode="bilinear", align_corners=False)


def tile(images: Tensor, factor: int, shrink: str = "area", *, whole: bool = False) -> Tensor:
    """Shrink images to 1/factor and lay factor² of them on a canvas, row-major: the inverse of ``decode``.

    images: (n·factor², C, H, W), the images of a canvas one after the other.
    factor: images along each side of a canvas.
    shrink: 'area' averages pixels; 'nearest' drops pixels, as DREAM's released code does.
    whole: return canvases of the tiles' full size if ``factor`` does not divide the side, instead of their top-left
        H×W pixels.

    Return (n, C, H, W), larger with ``whole``.

    >>> import torch
    >>> tile(torch.arange(4.).view(4, 1, 1, 1).expand(4, 1, 2, 2), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    if factor == 1:
        return images
    _, c, h, w = images.shape
    size = (math.ceil(h / factor), math.ceil(w / factor))
    small = F.interpolate(images, size=size, mode=shrink)
    grid = small.view(-1, factor, factor, c, *size).permute(0, 3, 1, 4, 2, 5)  # (n, C, f, h, f, w)
    grid = grid.reshape(-1, c, size[0] * factor, size[1] * factor)
    return grid if whole else grid[:, :, :h, :w].contiguous()
