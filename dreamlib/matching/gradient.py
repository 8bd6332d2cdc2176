"""Gradient matching: match the weight gradient of the synthetic images to that of the real images (DC, IDC, DREAM)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dreamlib._engine.compiled_network import KnownGradient, Weights, weights_of
from dreamlib.data.types import DatasetInfo
from dreamlib.matching.distribution import detached, mean_feature_distance, squared
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective
from dreamlib.settings import NonNegative


def absolute(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the sum of absolute differences, not normalised (IDC's 'l1').

    >>> import torch
    >>> absolute(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])).item()
    3.0
    """
    return (synthetic - real).abs().sum()


def row_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return Σ over output rows of (1 − cosine) (DC, appendix): a conv weight (out, in, h, w) has ``out`` rows.

    The 1e-6 in the denominator avoids division by zero for a row with zero gradient.

    >>> import torch
    >>> row_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])).item()
    1.0...
    """
    a, b = real.flatten(1), synthetic.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


# By name of the option; 'mse' is the sum of squared differences, not normalised (IDC's 'mse').
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared, "l1": absolute, "cosine": row_cosine}


def matched_weights(network: nn.Module, layers: str) -> tuple[Weights, Weights]:
    """Return the weights whose gradients are matched, 'conv' (IDC, DREAM) or 'conv_linear' (DC, DSA), and all others.

    Biases and norms (1-D) are never matched. Raise ValueError for a network without such a weight.
    """
    smallest = {"conv": 4, "conv_linear": 2}[layers]
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.ndim >= smallest}
    if not parameters:
        raise ValueError(f"the network has no {layers} weight to match; set options.layers: conv_linear")
    return parameters, {name: w.detach() for name, w in weights_of(network).items() if name not in parameters}


@OBJECTIVES.register("gradient")
@dataclass(frozen=True)
class GradientMatching(Objective):
    """Σ over matched weights of distance(∂CE(real)/∂θ, ∂CE(synthetic)/∂θ), class by class (DC §3; IDC §4; DREAM §3).

    IDC and DREAM: 'mse' or 'l1' over 'conv' weights. DC and DSA: 'cosine' over 'conv_linear'. Real and synthetic images
    of a class share one augmentation draw. ``feature_weight`` times the same distance between the mean features of the
    real and of the synthetic images is added (DREAM+).
    """

    distance: Literal["mse", "l1", "cosine"] = "mse"
    layers: Literal["conv", "conv_linear"] = "conv"
    feature_weight: NonNegative = 0.0

    def check(self, network: nn.Module, info: DatasetInfo, expert_epochs: int | None = None) -> None:
        """See ``Objective.check`` and ``matched_weights``."""
        matched_weights(network, self.layers)

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``."""
        matched, fixed = matched_weights(state.network, self.layers)
        distance, kernels = DISTANCES[self.distance], state.kernels
        if state.together and not self.feature_weight and (real := state.real_batches()) is not None:
            yield -1, self._together(state, real, matched, fixed)
            return
        for label in state.classes:
            draw = state.draw(label)
            real = state.prepare(state.real_images(label), draw)
            target = kernels.weight_gradient(matched, fixed, real, state.targets(label, len(real)))
            synthetic = state.prepare(state.synthetic_images(label), draw)
            loss = kernels.match(distance, synthetic, state.targets(label, len(synthetic)), matched, fixed, target)
            if self.feature_weight:
                weights = detached(weights_of(state.network))
                loss = loss + self.feature_weight * mean_feature_distance(state, weights, real, synthetic, distance)
            yield label, loss

    def _together(self, state: MatchState, real: Tensor, matched: Weights, fixed: Weights) -> Tensor:
        """Return the losses (K,) of all classes by one branch-free function, captured as a CUDA graph on a GPU."""
        labels = state.send(torch.tensor(list(state.classes)))

        def match_all_classes(
            canvases: Tensor,
            rows: Tensor,
            real: Tensor,
            table: Tensor,
            labels: Tensor,
            matched: Weights,
            fixed: Weights,
        ) -> tuple[Tensor, Tensor]:
            synthetic, pull_back = state.decode_drawn(canvases, rows, table)
            prepared = state.prepare_drawn(real, table)
            values, gradient = state.kernels.match_together(
                DISTANCES[self.distance], prepared, synthetic, labels, matched, fixed
            )
            return values, pull_back(gradient)

        canvases, name = state.synthetic.canvases, f"gradient {self}"
        with torch.no_grad():
            values, gradient = state.graphs.get(name, match_all_classes)(
                canvases, state.synthetic_rows(), real, state.draw_table(state.classes), labels, matched, fixed
            )
        return KnownGradient.apply(canvases, values, gradient.clone())  # the next graph launch overwrites the original
