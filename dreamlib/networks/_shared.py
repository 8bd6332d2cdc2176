"""Parts that several network families share."""

from typing import Literal

import torch
from torch import Tensor, nn

from dreamlib.data.types import DatasetInfo

Norm = Literal["instance", "batch"]  # the norms of ``set_norm``


class FeatureNet(nn.Module):
    """A body that maps images to features, and a linear head.

    body: (N, C, H, W) → (N, width, …), flattened to the features.
    width: number of features, D.
    num_classes: K.

    Half-precision input is computed in float32, other input in its own dtype.

    >>> net = FeatureNet(nn.Flatten(), 16, num_classes=3)
    >>> net.features(torch.zeros(2, 1, 4, 4)).shape, net(torch.zeros(2, 1, 4, 4).bfloat16()).dtype
    (torch.Size([2, 16]), torch.float32)
    """

    def __init__(self, body: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features (N, D), the input of the head, of normalised images (N, C, H, W)."""
        return self.body(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of normalised images (N, C, H, W)."""
        return self.head(self.features(x))


def set_norm(module: nn.Module, norm: Norm) -> nn.Module:
    """Replace each batch norm by an instance norm, in place, if ``norm`` is 'instance'; return the module.

    For networks of torchvision, which take no such argument. As in the distillation literature, an instance norm is a
    group norm with one channel per group: affine, without running statistics.
    """
    if norm == "instance":
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(child.num_features, child.num_features))
            else:
                set_norm(child, norm)
    return module


def is_small_grey(info: DatasetInfo) -> bool:
    """Return whether images are grey and of 28 pixels (the MNIST family): DC's first convolution pads them to 32."""
    return info.channels == 1 and info.size == 28


def need_side(network: str, info: DatasetInfo, least: int, remedy: str) -> None:
    """Raise ValueError, with the limit and the remedy, for images with a side of less than ``least`` pixels."""
    if info.size < least:
        raise ValueError(f"{network} needs images of at least {least} pixels; '{info.name}' has {info.size}: {remedy}")
