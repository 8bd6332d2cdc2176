"""Residual networks of the cross-architecture tables: torchvision's ResNet with a stem for small images."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dreamlib._torchvision import torchvision
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, check_norm, need_side, set_norm
from dreamlib.types import DatasetInfo


@NETWORKS.register("resnet18")
@dataclass(frozen=True)
class ResNet18Family:
    """ResNet-18 (He et al., CVPR 2016) with a 3×3 stem of stride 1, no max pooling, and ``norm`` instance or batch."""

    norm: str = "instance"
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    average_pooled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_norm(self.norm)

    def build(self, info: DatasetInfo) -> FeatureNet:
        """The network for a data set's channels and classes."""
        # Below 16 pixels the last stage sees one pixel, and the instance norm of one pixel is zero.
        remedy = "use norm='batch' (from 8 pixels) or the convnet" if self.norm == "instance" else "use the convnet"
        need_side("resnet", info, 16 if self.norm == "instance" else 8, remedy)
        resnet = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, list(self.blocks))
        stem = nn.Conv2d(info.channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does all the others
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        if self.average_pooled:
            for stage in stages[1:]:
                _pool_instead_of_stride(stage[0])
        layers = OrderedDict(conv1=stem, bn1=resnet.bn1, relu=resnet.relu)
        layers |= {f"layer{number}": stage for number, stage in enumerate(stages, 1)}
        body = set_norm(nn.Sequential(layers | {"pool": nn.AdaptiveAvgPool2d(1)}), self.norm)
        return FeatureNet(body, 512, info.num_classes)


@NETWORKS.register("resnet10")
@dataclass(frozen=True)
class ResNet10Family(ResNet18Family):
    """ResNet-10: as ResNet-18 with one block a stage."""

    blocks: ClassVar[tuple[int, ...]] = (1, 1, 1, 1)


@NETWORKS.register("resnet10_ap")
@dataclass(frozen=True)
class ResNet10APFamily(ResNet10Family):
    """ResNet-10 that halves its maps by average pooling instead of strides, so that no pixel's gradient is skipped.

    After ResNetAP of DC and IDC: stride 1, then a pooling after the block's first ReLU and one in the shortcut.
    """

    average_pooled: ClassVar[bool] = True


def _pool_instead_of_stride(block: nn.Module) -> None:
    """Change one of torchvision's strided basic blocks in place."""
    block.conv1.stride = (1, 1)
    block.conv2 = nn.Sequential(nn.AvgPool2d(2), block.conv2)
    shortcut, norm = block.downsample
    shortcut.stride = (1, 1)
    block.downsample = nn.Sequential(shortcut, nn.AvgPool2d(2), norm)
