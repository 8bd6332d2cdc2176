"""The DenseNet of the cross-architecture tables: torchvision's, with a stem for small images."""

from dataclasses import dataclass

from torch import nn

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.types import DatasetInfo
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, Norm, need_side, set_norm

GROWTH = 12  # channels that each layer adds


@NETWORKS.register("densenet")
@dataclass(frozen=True)
class DenseNetFamily:
    """DenseNet-121 (Huang et al., CVPR 2017) with a 3×3 stem of stride 1 without norm and pooling, and no dropout.

    blocks: layers of each dense block.
    norm: 'instance' or 'batch'.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    norm: Norm = "instance"

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels and classes."""
        # The side is halved after every block but the last, and the instance norm of a single pixel is zero.
        least = 2 ** (len(self.blocks) - (self.norm == "batch"))
        remedy = "use norm='batch', fewer blocks or the convnet" if self.norm == "instance" else "use the convnet"
        need_side("densenet", info, least, remedy)
        width = 2 * GROWTH
        dense = torchvision.models.DenseNet(GROWTH, tuple(self.blocks), num_init_features=width)
        layers = dense.features
        stem = nn.Conv2d(info.channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight)  # as torchvision initialises the other convolutions
        layers.conv0, layers.norm0, layers.relu0, layers.pool0 = stem, *(nn.Identity() for _ in range(3))
        body = nn.Sequential(set_norm(layers, self.norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return FeatureNet(body, dense.classifier.in_features, info.num_classes)
