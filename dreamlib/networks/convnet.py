"""The ConvNet on which dataset distillation is measured (Gidaris & Komodakis, CVPR 2018; DC, ICLR 2021)."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlib._engine.network import Network
from dreamlib.data.types import DatasetInfo
from dreamlib.errors import unknown
from dreamlib.networks import NETWORKS


def _wide(x: Tensor) -> Tensor:
    """x, or its float32 copy if it is of half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


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
        shifted = self._shifted(x)
        n, _, height, width = shifted[0].shape
        patches = torch.stack([each.permute(0, 2, 3, 1) for each in shifted], -1).reshape(n, height * width, -1)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype).reshape(self.out_channels, -1)
        out = F.linear(self._aligned(patches, -1), self._aligned(weight, -1), bias)
        return out.reshape(n, height, width, self.out_channels).permute(0, 3, 1, 2)

    def normed(self, x: Tensor, norm: "InstanceNorm") -> Tensor:
        """``norm`` of the convolution, (N, C, H, W) → (N, C', H', W'), without computing the convolution first.

        The convolution is linear, so a channel of weights w has the mean w · mean(patch) and the variance
        wᵀ cov(patch) w over an image's pixels, and 9 C × 9 C numbers an image are all there is to sum for all channels.
        The normed channels are then one product with weights of each image's own, and that is read once, by the
        activation, where a norm reads its input three times. The norm takes the convolution's bias away.
        """
        shifted = self._shifted(x)
        n, _, height, width = shifted[0].shape
        wide = _wide(torch.stack(shifted, 2).reshape(n, -1, height * width))
        centered = wide - wide.mean(2, keepdim=True)
        covariance = centered @ centered.transpose(1, 2) / (height * width)
        weight = self.weight.to(wide.dtype).reshape(self.out_channels, -1)
        variance = ((weight @ covariance) * weight).sum(2)
        weights = weight * (norm.weight * torch.rsqrt(variance + norm.eps)).unsqueeze(2)
        # The norm's bias as the weight of a constant, so that its gradient comes out of the same product.
        weights = torch.cat([weights, norm.bias.view(-1, 1).expand(n, -1, 1)], 2).to(x.dtype)
        patches = torch.cat([centered, centered.new_ones(n, 1, height * width)], 1).to(x.dtype)
        out = self._aligned(patches, -2).transpose(1, 2) @ self._aligned(weights, -1).transpose(1, 2)
        return out.reshape(n, height, width, self.out_channels).permute(0, 3, 1, 2)

    def _shifted(self, x: Tensor) -> list[Tensor]:
        """The image under each of the nine weights of a filter: (N, C, H', W')."""
        pad = int(self.padding[0])
        height, width = x.shape[2] + 2 * pad - 2, x.shape[3] + 2 * pad - 2
        padded = F.pad(x, (pad, pad, pad, pad))
        return [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]

    @staticmethod
    def _aligned(x: Tensor, dim: int) -> Tensor:
        """On a GPU, whose fast products want rows of a multiple of 16 bytes, filled up with zeros along ``dim`` < 0."""
        return F.pad(x, (0, 0) * (-dim - 1) + (0, -x.shape[dim] % 8)) if x.is_cuda else x


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
        lines = x[:, :, : 2 * height, : 2 * width].permute(0, 2, 3, 1)  # as the convolutions' outputs lie in memory
        return lines.reshape(n, height, 2, width, 2, channels).mean((2, 4)).permute(0, 3, 1, 2)


class InstanceNorm(nn.GroupNorm):
    """A group norm of one channel a group, as in DC; its parameters have the names of a group norm's."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same, each channel of each image with mean zero and variance one, scaled and moved."""
        return self.in_steps(x) if x.is_cuda and torch.compiler.is_compiling() else super().forward(x)

    def in_steps(self, x: Tensor) -> Tensor:
        """The same by elementary operations, which are compiled to code that keeps x channels-last."""
        wide = _wide(x)
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


class Block(nn.Sequential):
    """A convolution, its norm, activation and pooling; a first convolution is compiled together with its norm."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H' // 2, W' // 2)."""
        conv, norm, activation, pooling = self
        # Not for autograd's tape, on which features are taken in evaluation mode: compiled for it, the step would keep
        # the activation's signs in a layout that takes longer to write than the whole convolution.
        taped = torch.is_grad_enabled() and not self.training
        together = isinstance(conv, FirstConv2d) and isinstance(norm, InstanceNorm) and not taped
        if torch.compiler.is_compiling() and together:
            return pooling(activation(conv.normed(x, norm)))
        return super().forward(x)


class ConvNet(Network):
    """``depth`` blocks of convolution, norm, activation and pooling, then one linear layer.

    It computes in the dtype of its input: ``network(x.bfloat16())`` is bfloat16 arithmetic on float32 parameters, about
    as good a gradient for less time. Logits come back as float32 from half-precision input, else in the input's dtype.
    """

    compiles = True

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
        return _wide(self.classifier(self.features(x)))


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
            blocks.append(Block(layers))
            channels, side = self.width, side // 2
        return ConvNet(nn.Sequential(*blocks), Linear(channels * side * side, info.num_classes))
