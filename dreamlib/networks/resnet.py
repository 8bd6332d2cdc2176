"""Residual networks for small and large images: ResNet-18, and IDC's ResNet-10 and ResNetAP-10.

The stem depends on the side of the images, as in IDC's released code (Kim et al., ICML 2022; DREAM uses the same
networks). "AP" replaces every stride by a stride-1 convolution and average pooling.

=========  ============================  =============================
side       ResNet                        ResNetAP
=========  ============================  =============================
up to 64   3×3 convolution, no pooling   3×3 convolution, no pooling
up to 128  3×3, max pooling of stride 2  3×3, average pooling by 2
above 128  7×7 of stride 2, max pooling  7×7, average pooling by 4
=========  ============================  =============================

Four stages of torchvision's basic blocks follow. Each doubles the channels of the one before and, from the second
stage on, halves the side. The features are the spatial mean of the last stage.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.types import DatasetInfo
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, Norm, need_side, set_norm
from dreamlib.settings import Positive


@dataclass(frozen=True)
class _ResNetFamily:
    """The common part of the residual networks: four stages of ``blocks`` basic blocks each."""

    norm: Norm = "instance"
    blocks: ClassVar[int]
    average_pooled: ClassVar[bool] = False

    def first_width(self, info: DatasetInfo) -> int:
        """Return the number of channels of the stem and the first stage."""
        raise NotImplementedError

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes.

        Raise ValueError for images below 16 pixels (instance norm) or 8 pixels (batch norm).
        """
        # The last stage has an eighth of the side, and the instance norm of a single pixel is zero.
        remedy = "use norm='batch' (from 8 pixels) or the convnet" if self.norm == "instance" else "use the convnet"
        need_side("resnet", info, 16 if self.norm == "instance" else 8, remedy)
        width = self.first_width(info)
        layers = _stem(info, width, self.average_pooled)
        for number in range(4):
            in_width, out_width = width << max(number - 1, 0), width << number
            stage = _stage(in_width, out_width, self.blocks, stride=2 if number else 1)
            if self.average_pooled and number:
                _pool_instead_of_stride(stage[0])
            layers[f"layer{number + 1}"] = stage
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        body = nn.Sequential(layers)
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return FeatureNet(set_norm(body, self.norm), 8 * width, info.num_classes)


@NETWORKS.register("resnet18")
@dataclass(frozen=True)
class ResNet18Family(_ResNetFamily):
    """ResNet-18 (He et al., CVPR 2016), with a stem for the side of the images.

    Options:
        norm: "instance" or "batch".
        width: channels of the first stage. 64 is He's network, which DC and its successors use for all data sets; IDC's
            released code has 32 for CIFAR.
    """

    width: Positive = 64
    blocks: ClassVar[int] = 2

    def first_width(self, info: DatasetInfo) -> int:
        """Return ``width``, whatever the data set."""
        return self.width


@NETWORKS.register("resnet10")
@dataclass(frozen=True)
class ResNet10Family(_ResNetFamily):
    """ResNet-10 of IDC and DREAM: one block per stage, and half the channels for CIFAR.

    The stages have 32, 64, 128 and 256 channels for data sets whose name begins with "cifar", as in the released code,
    and 64, 128, 256 and 512 for all others. The name decides, not the shape of the images: SVHN has CIFAR's shape and
    the wide network.

    Options:
        norm: "instance" or "batch".

    >>> import torch
    >>> from dreamlib.networks import build
    >>> info = DatasetInfo("cifar10", tuple("abcdefghij"), 3, 32, mean=(0.5,) * 3, std=(0.2,) * 3)
    >>> sum(p.numel() for p in build("resnet10", info, torch.Generator().manual_seed(0)).parameters())
    1228970
    """

    blocks: ClassVar[int] = 1

    def first_width(self, info: DatasetInfo) -> int:
        """Return 32 for CIFAR, 64 for other data sets."""
        return 32 if info.name.startswith("cifar") else 64


@NETWORKS.register("resnet10_ap")
@dataclass(frozen=True)
class ResNet10APFamily(ResNet10Family):
    """ResNetAP-10 of IDC and DREAM: ResNet-10 with average pooling instead of strides, so that no pixel is skipped.

    It is the network for ImageNet subsets of 224 pixels. Width and options are those of ResNet-10.
    """

    average_pooled: ClassVar[bool] = True


def _stem(info: DatasetInfo, width: int, average_pooled: bool) -> OrderedDict[str, nn.Module]:
    """Return the layers before the first stage, by the side of the images (see the table above)."""
    kernel, stride = (7, 2) if info.size > 128 else (3, 1)
    pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
    if average_pooled:  # the pooling also replaces the stride
        pool, stride = nn.AvgPool2d(2 * stride), 1
    conv = nn.Conv2d(info.channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(width), relu=nn.ReLU())
    if info.size > 64:
        layers["stem_pool"] = pool
    return layers


def _stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Return ``blocks`` basic blocks, the first of which changes the side and the number of channels."""
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
    basic = torchvision.models.resnet.BasicBlock
    return nn.Sequential(basic(in_width, width, stride, shortcut), *(basic(width, width) for _ in range(1, blocks)))


def _pool_instead_of_stride(block: nn.Module) -> None:
    """Replace both strides of a basic block, in place, by average pooling: after the first ReLU and in the shortcut."""
    block.conv1.stride = (1, 1)
    block.conv2 = nn.Sequential(nn.AvgPool2d(2), block.conv2)
    shortcut, norm = block.downsample
    shortcut.stride = (1, 1)
    block.downsample = nn.Sequential(shortcut, nn.AvgPool2d(2), norm)
