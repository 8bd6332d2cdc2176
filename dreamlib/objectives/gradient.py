"""Gradient matching: make the synthetic images' weight gradient the real images' (DC, DSA, IDC, DREAM)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib.objectives.base import OBJECTIVES, MatchState, Objective
from dreamlib.registry import Registry, unknown

DISTANCES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("distance")


@DISTANCES.register("mse")
def squared(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum of squared differences, not normalised (IDC's 'mse').

    >>> squared(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).item()
    4.0
    """
    return (synthetic - real).square().sum()


@DISTANCES.register("l1")
def absolute(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum of absolute differences, not normalised (IDC's 'l1').

    >>> absolute(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])).item()
    3.0
    """
    return (synthetic - real).abs().sum()


@DISTANCES.register("cosine")
def row_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    """Σ over output rows of (1 − cosine) (DC, appendix): a conv weight (out, in, h, w) has ``out`` rows.

    The 1e-6 under the fraction keeps a row without gradient from dividing by zero.

    >>> row_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])).item()
    1.0...
    """
    a, b = real.flatten(1), synthetic.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def matched_parameters(network: nn.Module, layers: str) -> list[nn.Parameter]:
    """The weights whose gradients are compared: 'conv' (IDC, DREAM) or 'conv_linear' (DC, DSA); never biases or norms."""
    smallest = {"conv": 4, "conv_linear": 2}[layers]
    found = [p for p in network.parameters() if p.ndim >= smallest]
    if not found:
        raise ValueError(f"the network has no {layers} weight to match; set options.layers: conv_linear")
    return found


@OBJECTIVES.register("gradient")
@dataclass(frozen=True)
class GradientMatching(Objective):
    """Σ over matched weights of distance(∂CE(real)/∂θ, ∂CE(synthetic)/∂θ), class by class (DC §3; IDC §4; DREAM §3).

    IDC and DREAM: 'mse' or 'l1' over 'conv' weights. DC and DSA: 'cosine' over 'conv_linear'. Real and synthetic images
    of a class get the same augmentation draw.
    """

    distance: Literal["mse", "l1", "cosine"] = "mse"
    layers: Literal["conv", "conv_linear"] = "conv"

    def __post_init__(self) -> None:
        DISTANCES[self.distance]
        if self.layers not in ("conv", "conv_linear"):
            raise unknown("choice of layers", self.layers, ["conv", "conv_linear"])

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``."""
        state.network.train()
        weights, distance = matched_parameters(state.network, self.layers), DISTANCES[self.distance]
        for label in range(state.info.num_classes):
            draw = state.draw(label)
            real = weight_gradients(state, state.prepare(state.real_images(label), draw), label, weights)
            synthetic = state.prepare(state.synthetic_images(label), draw)
            ours = weight_gradients(state, synthetic, label, weights, differentiable=True)
            yield label, torch.stack([distance(r, s) for r, s in zip(real, ours, strict=True)]).sum()


def weight_gradients(
    state: MatchState, images: Tensor, label: int, weights: list[nn.Parameter], differentiable: bool = False
) -> tuple[Tensor, ...]:
    """∂(mean cross-entropy of prepared ``images`` of one class)/∂weights, one tensor per weight."""
    loss = F.cross_entropy(state.network(images), state.targets(label, len(images)))
    return torch.autograd.grad(loss, weights, create_graph=differentiable)
