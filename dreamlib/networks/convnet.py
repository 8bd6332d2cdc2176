"""The ConvNet of the dataset-distillation benchmarks (Gidaris & Komodakis, CVPR 2018; DC, ICLR 2021)."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlib._engine.compiled_network import Compilable
from dreamlib.data.types import DatasetInfo
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import is_small_grey
from dreamlib.settings import Positive


def _wide(x: Tensor) -> Tensor:
    """Return x, converted to float32 if it has half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Conv2d(nn.Conv2d):
    """A convolution in the dtype of its input, whatever the parameters' dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class FirstConv2d(Conv2d):
    """A 3×3 convolution of few input channels, computed as one matrix product with the neighbourhoods of all pixels.

    On a CPU, the libraries' weight gradient of a one-channel convolution takes as long as that of 128 channels. On a
    GPU, the memory layout of one-channel images does not tell the libraries to use channels-last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W'), channels-last in memory."""
        shifted = self._shifted(x)
        n, _, height, width = shifted[0].shape
        patches = torch.stack([image.permute(0, 2, 3, 1) for image in shifted], -1).reshape(n, height * width, -1)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype).reshape(self.out_channels, -1)
        out = F.linear(self._aligned(patches, -1), self._aligned(weight, -1), bias)
        return out.reshape(n, height, width, self.out_channels).permute(0, 3, 1, 2)

    def convolved_and_normed(self, x: Tensor, norm: "InstanceNorm") -> Tensor:
        """Return ``norm`` of the convolution, (N, C, H, W) → (N, C', H', W'), without computing the convolution first.

        The convolution is linear: over an image's pixels, the channel with weights w has the mean w · mean(patch) and
        the variance wᵀ cov(patch) w. So the statistics of all channels follow from a 9C×9C matrix per image, and the
        normalised channels are one product with weights scaled for each image. That product is read once, by the
        activation, whereas a norm reads its input three times. The norm cancels the convolution's bias, whose gradient
        is zero.
        """
        shifted = self._shifted(x)
        n, _, height, width = shifted[0].shape
        wide = _wide(torch.stack(shifted, 2).reshape(n, -1, height * width))
        centered = wide - wide.mean(2, keepdim=True)
        covariance = centered @ centered.transpose(1, 2) / (height * width)
        weight = self.weight.to(wide.dtype).reshape(self.out_channels, -1)
        variance = ((weight @ covariance) * weight).sum(2)
        weights = weight * (norm.weight * torch.rsqrt(variance + norm.eps)).unsqueeze(2)
        # The norm's bias is the weight of a constant input, so that the same product yields its gradient. Adding zero
        # times the convolution's bias gives that bias a gradient, zero, instead of none.
        bias = norm.bias if self.bias is None else norm.bias + 0 * self.bias
        weights = torch.cat([weights, bias.view(-1, 1).expand(n, -1, 1)], 2).to(x.dtype)
        patches = torch.cat([centered, centered.new_ones(n, 1, height * width)], 1).to(x.dtype)
        out = self._aligned(patches, -2).transpose(1, 2) @ self._aligned(weights, -1).transpose(1, 2)
        return out.reshape(n, height, width, self.out_channels).permute(0, 3, 1, 2)

    def _shifted(self, x: Tensor) -> list[Tensor]:
        """Return the padded image shifted by each of the nine filter offsets: (N, C, H', W') each."""
        pad = int(self.padding[0])
        height, width = x.shape[2] + 2 * pad - 2, x.shape[3] + 2 * pad - 2
        padded = F.pad(x, (pad, pad, pad, pad))
        return [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]

    @staticmethod
    def _aligned(x: Tensor, dim: int) -> Tensor:
        """Return x, on a GPU zero-padded along ``dim`` < 0: fast products need rows of a multiple of 16 bytes."""
        return F.pad(x, (0, 0) * (-dim - 1) + (0, -x.shape[dim] % 8)) if x.is_cuda else x


class AvgPool2d(nn.Module):
    """nn.AvgPool2d(2); when compiled, a mean over a view, for which the compiler generates a faster gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H // 2, W // 2); an odd last row or column is dropped."""
        if not torch.compiler.is_compiling():
            return F.avg_pool2d(x, 2)
        pooled = self.over_view(x)
        # On a GPU, a convolution would otherwise convert the layout of its input and of its output.
        return pooled.contiguous(memory_format=torch.channels_last) if x.is_cuda else pooled

    @staticmethod
    def over_view(x: Tensor) -> Tensor:
        """Return the mean over a view with the 2×2 squares as axes; slower than F.avg_pool2d if not compiled."""
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
        channels_last = x[:, :, : 2 * height, : 2 * width].permute(0, 2, 3, 1)  # the convolutions' memory layout
        return channels_last.reshape(n, height, 2, width, 2, channels).mean((2, 4)).permute(0, 3, 1, 2)


class InstanceNorm(nn.GroupNorm):
    """A group norm with one channel per group, as in DC, with the parameter names of nn.GroupNorm."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W), each channel of each image normalised, scaled and shifted."""
        return self.elementwise(x) if x.is_cuda and torch.compiler.is_compiling() else super().forward(x)

    def elementwise(self, x: Tensor) -> Tensor:
        """Compute the same by elementwise operations, for which the compiler keeps x channels-last."""
        wide = _wide(x)
        variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        weight, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        return ((wide - mean) * torch.rsqrt(variance + self.eps) * weight + bias).to(x.dtype)


class Linear(nn.Linear):
    """A linear map in the dtype of its input, whatever the parameters' dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D')."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


# The norms need no cast: torch accepts half-precision input with float32 parameters and computes statistics in float32.
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
    """A convolution, its norm, activation and pooling; the first block computes convolution and norm as one."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H' // 2, W' // 2)."""
        conv, norm, activation, pooling = self
        # Not for compiled features in evaluation mode with gradients: the activation's mask, saved for autograd, would
        # get a layout that takes longer to write than the whole convolution.
        saves_mask = torch.compiler.is_compiling() and torch.is_grad_enabled() and not self.training
        if isinstance(conv, FirstConv2d) and isinstance(norm, InstanceNorm) and not saves_mask:
            return pooling(activation(conv.convolved_and_normed(x, norm)))
        return super().forward(x)


class ConvNet(Compilable):
    """``depth`` blocks of convolution, norm, activation and pooling, then one linear layer.

    It computes in the dtype of its input: ``network(x.bfloat16())`` is bfloat16 arithmetic with float32 parameters.
    Logits of half-precision input are returned in float32, others in the input's dtype.
    """

    def __init__(self, blocks: nn.Sequential, classifier: Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.classifier = classifier

    def features(self, x: Tensor) -> Tensor:
        """Return the features (N, D), the flattened output of the last block, of normalised images (N, C, H, W)."""
        return self.blocks(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of normalised images (N, C, H, W)."""
        return _wide(self.classifier(self.features(x)))


def with_torchs_layers(network: nn.Module) -> nn.Module:
    """Return a copy of a ConvNet with the same weights and torch's own layers; other networks are returned as they are.

    It is the baseline of benchmarks and serves to count operations: a ConvNet computes its first convolution and norm
    as one product, whose operations would be counted instead of theirs.
    """
    if not isinstance(network, ConvNet):
        return network
    plain, weight = copy.deepcopy(network), network.classifier.weight
    for index, block in enumerate(plain.blocks):
        layers = OrderedDict(block.named_children())
        for name, layer in layers.items():
            if isinstance(layer, FirstConv2d):
                new = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=int(layer.padding[0]))
            elif isinstance(layer, AvgPool2d):
                new = nn.AvgPool2d(2)
            elif isinstance(layer, InstanceNorm):
                new = nn.GroupNorm(layer.num_channels, layer.num_channels)
            else:
                continue
            new.load_state_dict(layer.state_dict())
            layers[name] = new.to(weight.device, weight.dtype)
        plain.blocks[index] = nn.Sequential(layers)
    return plain


def default_depth(size: int) -> int:
    """Return the depth for images of side ``size``: 3 up to 32 pixels, 4 at 64 and 5 at 128, as in the literature.

    Images too small for three halvings down to 2×2 get fewer blocks.

    >>> [default_depth(size) for size in (8, 16, 28, 32, 64, 128)]
    [2, 3, 3, 3, 4, 5]
    """
    halvings = int(math.log2(size))
    return max(halvings - 2, min(3, halvings - 1), 1)


@NETWORKS.register("convnet")
@dataclass(frozen=True)
class ConvNetFamily:
    """The ConvNet of DC and its successors; its first convolution pads grey images of 28 pixels to 32, as in DC.

    depth: number of blocks; None takes ``default_depth`` of the images' side.
    width: channels of each block.
    norm, activation, pooling: layers of each block; 'group' has 4 groups.

    Raise ValueError for a depth or width out of range.
    """

    depth: int | None = None
    width: Positive = 128
    norm: Literal["instance", "batch", "group", "layer", "none"] = "instance"
    activation: Literal["relu", "leaky_relu", "sigmoid", "silu"] = "relu"
    pooling: Literal["avg", "max"] = "avg"

    def __post_init__(self) -> None:
        if self.norm == "group" and self.width % 4:
            raise ValueError(f"width={self.width} must be divisible by 4 for norm 'group'")

    def build(self, info: DatasetInfo) -> ConvNet:
        """Return the network for a data set's channels, side and classes."""
        first_padding = 3 if is_small_grey(info) else 1
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
