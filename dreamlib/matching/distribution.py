"""Distribution matching: match the mean feature of the synthetic images to that of the real images (DM, DREAM+)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamlib._engine.compiled_network import Weights, weights_of
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a − b‖², the sum of squared differences.

    >>> squared(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).item()
    4.0
    """
    return (a - b).square().sum()


def mean_feature_distance(
    state: MatchState,
    weights: Weights,
    real: Tensor,
    synthetic: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor] = squared,
) -> Tensor:
    """Return distance(mean features(real), mean features(synthetic)), differentiable in the synthetic images only.

    weights: a network's detached weights.
    real: (n, C, H, W), prepared images.
    synthetic: (m, C, H, W), prepared images.

    With the squared distance this is DM's loss for one class; DREAM+ adds it to gradient matching, with the same
    distance as for the gradients.
    """
    with torch.no_grad():
        target = _mean(state.kernels.features(weights, real))  # (D,)
    return distance(target, _mean(state.kernels.features(weights, synthetic)))


def _mean(features: Tensor) -> Tensor:
    # Half-precision features are summed in float32: the difference of two close means would be mostly rounding error.
    return (features.float() if features.dtype in (torch.bfloat16, torch.float16) else features).mean(0)


def detached(weights: Weights) -> Weights:
    """Return the same tensors detached, so that no gradient is computed for them."""
    return {name: tensor.detach() for name, tensor in weights.items()}


@OBJECTIVES.register("distribution")
@dataclass(frozen=True)
class DistributionMatching(Objective):
    """Σ over classes of ‖mean features(real batch) − mean features(synthetic)‖² (DM, Zhao & Bilen, WACV 2023).

    Features are those of the current network: DM never trains it and uses a fresh one at every iteration
    (``train_on: none``, ``inner_iterations: 1``). Real and synthetic images of a class share one augmentation draw.
    It has no options.
    """

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``."""
        weights = detached(weights_of(state.network))
        for label in state.classes:
            draw = state.draw(label)
            real = state.prepare(state.real_images(label), draw)
            synthetic = state.prepare(state.synthetic_images(label), draw)
            yield label, mean_feature_distance(state, weights, real, synthetic)
