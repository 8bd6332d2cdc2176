"""Parts that several network families share."""

import torch
from torch import Tensor, nn

from dreamlib.data.types import DatasetInfo
from dreamlib.errors import unknown


class FeatureNet(nn.Module):
    """A body that embeds images and a linear head; in float32 for half-precision input, else in the input's dtype.

    >>> net = FeatureNet(nn.Flatten(), 16, num_classes=3)
    >>> net.features(torch.zeros(2, 1, 4, 4)).shape, net(torch.zeros(2, 1, 4, 4).bfloat16()).dtype
    (torch.Size([2, 16]), torch.float32)
    """

    def __init__(self, body: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised images → (N, D), the input of the last linear layer."""
        return self.body(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised images → (N, K) logits."""
        return self.head(self.features(x))


def check_norm(norm: str) -> None:
    """Raise UnknownNameError unless ``norm`` is one that ``set_norm`` knows."""
    if norm not in ("instance", "batch"):
        raise unknown("norm", norm, ["instance", "batch"])


def set_norm(module: nn.Module, norm: str) -> nn.Module:
    """The module with every batch norm inside it replaced by an instance norm if ``norm`` says so.

    For torchvision's networks that have no argument for it. An instance norm is a group norm of one channel a group,
    affine and without running statistics, as in the distillation literature.
    """
    if norm == "instance":
        for name, child in module.named_children():
            fresh = nn.GroupNorm(child.num_features, child.num_features) if isinstance(child, nn.BatchNorm2d) else None
            setattr(module, name, fresh or set_norm(child, norm))
    return module


def need_side(network: str, info: DatasetInfo, least: int, remedy: str) -> None:
    """Raise ValueError, with the limit and the way out, for images of a side below ``least``."""
    if info.size < least:
        raise ValueError(f"{network} needs images of at least {least} pixels; '{info.name}' has {info.size}: {remedy}")
