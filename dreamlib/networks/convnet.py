"""The ConvNet on which dataset distillation is measured (Gidaris & Komodakis, CVPR 2018; DC, ICLR 2021)."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlib.networks import NETWORKS
from dreamlib.registry import unknown
from dreamlib.types import DatasetInfo

_HALF = (torch.bfloat16, torch.float16)


class Conv2d(nn.Conv2d):
    """Convolution in the dtype of its input; the parameters stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class FirstConv2d(Conv2d):
    """A 3 × 3 convolution of few input channels, as one matrix product of each pixel's neighbourhood.

    The libraries' weight gradient of a one-channel convolution takes as long as that of a 128-channel one on a CPU, and
    on a GPU such images have no channels-last layout to tell the convolution by.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W'), channels-last in memory."""
        pad = int(self.padding[0])
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] + 2 * pad - 2, x.shape[3] + 2 * pad - 2
        padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = torch.stack(shifted, -1).reshape(n, height * width, channels * 9)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype).reshape(self.out_channels, -1)
        if x.is_cuda:  # its fast products want rows of a multiple of 16 bytes
            missing = -weight.shape[1] % 8
            patches, weight = F.pad(patches, (0, missing)), F.pad(weight, (0, missing))
        out = F.linear(patches, weight, bias)
        return out.reshape(n, height, width, self.out_channels).permute(0, 3, 1, 2)


class AvgPool2d(nn.Module):
    """Mean of every 2 × 2 square, as nn.AvgPool2d(2); compiled, as a mean over a view, whose gradient is fast code."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H // 2, W // 2); an odd last row or column is left out."""
        if not torch.compiler.is_compiling():
            return F.avg_pool2d(x, 2)
        pooled = self.over_view(x)
        # A convolution on a GPU takes its input as it lies: one that is not channels-last is laid out anew, twice.
        return pooled.contiguous(memory_format=torch.channels_last) if x.is_cuda else pooled

    @staticmethod
    def over_view(x: Tensor) -> Tensor:
        """The mean over a view with the squares as axes; uncompiled it is the slower of the two."""
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
        squares = x[:, :, : 2 * height, : 2 * width].reshape(n, channels, height, 2, width, 2)
        return squares.mean((3, 5))


class InstanceNorm(nn.GroupNorm):
    """A group norm of one channel a group, as in DC; its parameters have the names of a group norm's."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same, each channel of each image with mean zero and variance one, scaled and moved."""
        return self.in_steps(x) if x.is_cuda and torch.compiler.is_compiling() else super().forward(x)

    def in_steps(self, x: Tensor) -> Tensor:
        """The same by elementary operations, which are compiled to code that keeps x channels-last."""
        wide = x.float() if x.dtype in _HALF else x
        variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        weight, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        return ((wide - mean) * torch.rsqrt(variance + self.eps) * weight + bias).to(x.dtype)


class Linear(nn.Linear):
    """Linear map in the dtype of its input; the parameters stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D')."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


# The norms need no cast: torch's kernels take half-precision input with float32 affine parameters, and keep the
# statistics in float32.
_NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": lambda width, side: InstanceNorm(width),
    "batch": lambda width, side: nn.BatchNorm2d(width),
    "group": lambda width, side: nn.GroupNorm(4, width),
    "layer": lambda width, side: nn.LayerNorm([width, side, side]),
    "none": lambda width, side: nn.Identity(),
}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {"avg": AvgPool2d, "max": lambda: nn.MaxPool2d(2)}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
}


class ConvNet(nn.Module):
    """``depth`` blocks of convolution, norm, activation and pooling, then one linear layer.

    It computes in the dtype of its input: ``network(x.bfloat16())`` is bfloat16 arithmetic on float32 parameters, about
    as good a gradient for less time. Logits come back as float32 from half-precision input, else in the input's dtype.
    """

    compiles = True  # worth the seconds torch.compile takes (dreamlib.kernels)

    def __init__(self, blocks: nn.Sequential, classifier: Linear) -> None:
        super().__init__()
        self.feature_channels = int(blocks[-1].conv.out_channels)
        self.blocks = blocks
        self.classifier = classifier

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised images → (N, D), the flattened output of the last block, in the dtype of x."""
        return self.blocks(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised images → (N, K) logits."""
        logits = self.classifier(self.features(x))
        return logits.float() if x.dtype in _HALF else logits


def default_depth(size: int) -> int:
    """The literature's depth for a side in pixels: 3 to 32 pixels, 4 at 64, 5 at 128; less where 3 would not leave 2×2.

    >>> [default_depth(size) for size in (8, 16, 28, 32, 64, 128)]
    [2, 3, 3, 3, 4, 5]
    """
    halvings = int(math.log2(size))
    return max(halvings - 2, min(3, halvings - 1), 1)


@NETWORKS.register("convnet")
@dataclass(frozen=True)
class ConvNetFamily:
    """ConvNet-``depth`` of ``width`` channels; ``depth=None`` takes the literature's for the image side.

    ``norm``: instance, batch, group (4 groups), layer or none; ``activation``: relu, leaky_relu, sigmoid, silu;
    ``pooling``: avg or max. 28-pixel grey images are padded to 32 by the first convolution, as in DC.

    Raises UnknownNameError for an unknown norm, activation or pooling, ValueError for a depth or width out of range.
    """

    depth: int | None = None
    width: int = 128
    norm: str = "instance"
    activation: str = "relu"
    pooling: str = "avg"

    def __post_init__(self) -> None:
        for option, known in (("norm", _NORMS), ("activation", _ACTIVATIONS), ("pooling", _POOLINGS)):
            if getattr(self, option) not in known:
                raise unknown(option, getattr(self, option), list(known))
        if self.width < 1 or (self.norm == "group" and self.width % 4):
            raise ValueError(f"width={self.width} must be at least 1, and divisible by 4 for norm 'group'")

    def build(self, info: DatasetInfo) -> ConvNet:
        """The network for a data set's channels, side and classes."""
        first_padding = 3 if info.channels == 1 and info.size == 28 else 1
        side = info.size + 2 * (first_padding - 1)
        depth = default_depth(info.size) if self.depth is None else self.depth
        if not 1 <= depth <= int(math.log2(side)):
            raise ValueError(
                f"convnet of depth {depth} on {info.size}-pixel images: every block halves the side, so choose depth "
                f"between 1 and {int(math.log2(side))}"
            )
        channels, blocks = info.channels, []
        for number in range(depth):
            convolution = Conv2d if number else FirstConv2d
            layers = OrderedDict(
                conv=convolution(channels, self.width, 3, padding=1 if number else first_padding),
                norm=_NORMS[self.norm](self.width, side),
                activation=_ACTIVATIONS[self.activation](),
                pooling=_POOLINGS[self.pooling](),
            )
            blocks.append(nn.Sequential(layers))
            channels, side = self.width, side // 2
        return ConvNet(nn.Sequential(*blocks), Linear(channels * side * side, info.num_classes))
