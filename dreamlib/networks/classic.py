"""The plain networks of the cross-architecture tables: MLP, LeNet, AlexNet and VGG-11, in the small-image form of DC.

They follow DC (Zhao et al., ICLR 2021, section 4) and its successors. torchvision's AlexNet and VGG are made for images
of 224 pixels and have dropout, which draws from the global generator.
"""

from dataclasses import dataclass

from torch import nn

from dreamlib.data.types import DatasetInfo
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, Norm, is_small_grey, need_side, set_norm
from dreamlib.settings import Positive

_VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@NETWORKS.register("mlp")
@dataclass(frozen=True)
class MLPFamily:
    """Two hidden layers with ReLU; ``width`` is their number of units."""

    width: Positive = 128

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes."""
        pixels = info.channels * info.size**2
        layers = [nn.Flatten(), nn.Linear(pixels, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.ReLU()]
        return FeatureNet(nn.Sequential(*layers), self.width, info.num_classes)


@NETWORKS.register("lenet")
@dataclass(frozen=True)
class LeNetFamily:
    """LeNet-5 with ReLU and max pooling: 5×5 convolutions of 6 and 16 channels, then layers of 120 and 84 units."""

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes."""
        padding = 2 if info.channels == 1 else 0
        need_side("lenet", info, 16 - 2 * padding, "use mlp or convnet, or larger images")
        side = ((info.size + 2 * padding - 4) // 2 - 4) // 2
        body = nn.Sequential(
            *(nn.Conv2d(info.channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        )
        return FeatureNet(body, 84, info.num_classes)


@NETWORKS.register("alexnet")
@dataclass(frozen=True)
class AlexNetFamily:
    """Five convolutions, three max poolings and one linear layer; no norm, no dropout."""

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes."""
        need_side("alexnet", info, 8, "use mlp, or larger images")
        padding = 4 if is_small_grey(info) else 2
        side = (info.size + 2 * padding - 4) // 8
        body = nn.Sequential(
            *(nn.Conv2d(info.channels, 128, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        return FeatureNet(body, 192 * side * side, info.num_classes)


@NETWORKS.register("vgg11")
@dataclass(frozen=True)
class VGG11Family:
    """VGG-11 with one linear layer; ``norm`` is 'instance' or 'batch'.

    The instance norm of a single pixel is zero, so a pooling that would leave the next stage a single pixel is omitted.
    Images of 32 pixels and more are pooled five times.
    """

    norm: Norm = "instance"

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes."""
        need_side("vgg11", info, 4, "use mlp, or larger images")
        layers, channels, side = [], info.channels, info.size
        first_padding = 3 if is_small_grey(info) else 1
        side += 2 * (first_padding - 1)
        for number, stage in enumerate(_VGG11):
            for width in stage:
                padding = 1 if layers else first_padding
                layers += [nn.Conv2d(channels, width, 3, padding=padding), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if side >= 4 or number == len(_VGG11) - 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        body = set_norm(nn.Sequential(*layers), self.norm)
        return FeatureNet(body, channels * side * side, info.num_classes)
