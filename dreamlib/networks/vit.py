"""A small vision transformer (Dosovitskiy et al., ICLR 2021): torchvision's, of four layers."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.types import DatasetInfo
from dreamlib.networks import NETWORKS
from dreamlib.networks._shared import FeatureNet, need_side


def _request_attention_weights(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], Any]:
    """Forward pre-hook that requests attention weights, which makes torch compute attention by matrix products.

    Unlike the fused kernels, these can be differentiated twice. torch's switches for the fused kernels are global and
    would affect other threads.
    """
    return args, {**kwargs, "need_weights": True}


@NETWORKS.register("vit")
@dataclass(frozen=True)
class ViTFamily:
    """A vision transformer without dropout.

    patch: side of a patch, in pixels; must divide the images' side.
    dim: width of the layers; must be a multiple of ``heads``.
    depth: number of layers.
    heads: attention heads per layer.
    mlp_dim: hidden units of each layer's MLP.

    Raise ValueError if ``heads`` does not divide ``dim``.
    """

    patch: int = 4
    dim: int = 128
    depth: int = 4
    heads: int = 4
    mlp_dim: int = 256

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not divisible by heads={self.heads}; choose a multiple of heads")

    def build(self, info: DatasetInfo) -> FeatureNet:
        """Return the network for a data set's channels, side and classes."""
        need_side("vit", info, self.patch, "choose a smaller patch")
        if info.size % self.patch:
            raise ValueError(f"vit: {info.size} pixels do not divide into patches of {self.patch}; choose a divisor")
        encoder = torchvision.models.VisionTransformer(
            info.size, self.patch, self.depth, self.heads, self.dim, self.mlp_dim
        )
        for layer in encoder.modules():
            if isinstance(layer, nn.MultiheadAttention):
                layer.register_forward_pre_hook(_request_attention_weights, with_kwargs=True)
        if info.channels != 3:
            encoder.conv_proj = nn.Conv2d(info.channels, self.dim, self.patch, stride=self.patch)
        # FeatureNet's own head replaces torchvision's, whose zero weights would leave the body without a gradient.
        encoder.heads = nn.Identity()
        return FeatureNet(encoder, self.dim, info.num_classes)
