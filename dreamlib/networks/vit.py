"""A small vision transformer (Dosovitskiy et al., ICLR 2021): torchvision's, of four layers."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamlib._torchvision import torchvision
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, need_side
from dreamlib.types import DatasetInfo


class _Encoder(torchvision.models.VisionTransformer):
    """The transformer without its head: (N, C, H, W) → (N, dim), the class token."""

    def forward(self, x: Tensor) -> Tensor:
        # The fused attention kernels cannot be differentiated twice; the plain one can.
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)


@NETWORKS.register("vit")
@dataclass(frozen=True)
class ViTFamily:
    """A transformer over ``patch``×``patch`` pixels, ``dim`` wide, ``depth`` layers of ``heads`` heads, no dropout.

    Raises ValueError for images that do not divide into patches, or heads that do not divide the width.
    """

    patch: int = 4
    dim: int = 128
    depth: int = 4
    heads: int = 4
    mlp_dim: int = 256

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} does not divide by heads={self.heads}; choose dim a multiple of heads")

    def build(self, info: DatasetInfo) -> FeatureNet:
        """The network for a data set's channels, side and classes."""
        need_side("vit", info, self.patch, "choose a smaller patch")
        if info.size % self.patch:
            raise ValueError(f"vit: {info.size} pixels do not divide into patches of {self.patch}; choose a divisor")
        encoder = _Encoder(info.size, self.patch, self.depth, self.heads, self.dim, self.mlp_dim)
        if info.channels != 3:
            encoder.conv_proj = nn.Conv2d(info.channels, self.dim, self.patch, stride=self.patch)
        # torchvision starts its head at zero, which leaves the body without a gradient: nothing to match. Ours is not.
        encoder.heads = nn.Identity()
        return FeatureNet(encoder, self.dim, info.num_classes)
