"""Ridge regression on features: fitted to the distilled images, it should predict the real ones (FRePo)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamlib._engine.compiled_network import Weights, weights_of
from dreamlib.matching.distribution import detached
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective
from dreamlib.settings import Rate


def centred_targets(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return regression targets (n, K) of class numbers (n,): one-hot minus 1/K, so that each row sums to zero.

    >>> centred_targets(torch.tensor([1]), 2).tolist()
    [[-0.5, 0.5]]
    """
    return F.one_hot(labels, num_classes).to(dtype) - 1 / num_classes


def ridge_predictions(support: Tensor, targets: Tensor, features: Tensor, penalty: float) -> Tensor:
    """Return predictions (n, K) of ridge regression, differentiable in all arguments except the penalty.

    support: (m, D), features of the training images.
    targets: (m, K), of the training images.
    features: (n, D), to predict for.
    penalty: on the squared weights, in units of the mean squared norm of ``support``.

    Solved in its dual form, an m × m system, because m is small.

    >>> x, y = torch.eye(2), torch.tensor([[1.0], [-1.0]])
    >>> ridge_predictions(x, y, torch.tensor([[2.0, 0.0]]), 1.0).item()  # weights y / (1 + 1)
    1.0
    """
    gram = support @ support.T  # (m, m)
    system = gram + penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solve = _PositiveSolve.apply if gram.is_cuda else torch.linalg.solve
    return features @ (support.T @ solve(system, targets))


class _PositiveSolve(torch.autograd.Function):
    """``torch.linalg.solve`` of a symmetric positive definite system, by Cholesky, without synchronising the GPU.

    The forward and the backward pass share one factor; torch's own backward pass takes two more triangular solves
    of the whole matrix.
    """

    @staticmethod
    def forward(ctx: Any, system: Tensor, targets: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(system)
        factor = torch.where(failed == 0, factor, torch.nan)  # detected later by the Distiller; no synchronisation here
        solution = torch.cholesky_solve(targets, factor)
        ctx.save_for_backward(factor, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        factor, solution = ctx.saved_tensors
        grad_targets = torch.cholesky_solve(upstream, factor)
        return -grad_targets @ solution.T, grad_targets


@OBJECTIVES.register("ridge")
@dataclass(frozen=True)
class RidgeRegression(Objective):
    """Error on real images of the linear classifier that ridge regression fits to the distilled set (FRePo).

    Zhou, Nezhadarya & Ba, NeurIPS 2022: the last layer is fitted in closed form on the current network's features, so
    that a step takes one forward pass of the real batch and one forward and backward pass of the distilled set. The
    loss is half the mean squared distance to the centred one-hot targets, over all classes. FRePo trains its networks
    on the distilled set (``train_on: synthetic``). Unlike in FRePo, labels are hard and a sampler chooses real images.
    """

    by_class: ClassVar[bool] = False

    penalty: Rate = 1e-3

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``; one loss for all classes, given as class -1."""
        weights, classes = detached(weights_of(state.network)), state.info.num_classes
        if state.together and (batches := state.real_batches()) is not None:
            support, features, counts = self._recorded(state, batches, weights)
        else:
            draw = state.draw(-1)
            real = [state.real_images(c) for c in range(classes)]
            synthetic = [state.synthetic_images(c) for c in range(classes)]
            with torch.no_grad():
                features = state.kernels.features(weights, state.prepare(torch.cat(real), draw))  # (n, D)
            support = state.kernels.features(weights, state.prepare(torch.cat(synthetic), draw))  # (m, D)
            counts = [[len(x) for x in images] for images in (real, synthetic)]
        wide = torch.float64 if support.dtype == torch.float64 else torch.float32
        real_targets, support_targets = (
            centred_targets(torch.cat([state.targets(c, n) for c, n in enumerate(sizes)]), classes, wide)
            for sizes in counts
        )
        predicted = ridge_predictions(support.to(wide), support_targets, features.to(wide), self.penalty)
        yield -1, (predicted - real_targets).square().sum(1).mean() / 2

    def _recorded(self, state: MatchState, real: Tensor, weights: Weights) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Return (support, features, their counts by class) by branch-free functions, captured as CUDA graphs.

        The backward pass from the support to the canvases runs the network a second time, in a separate graph.
        """
        canvases, rows, table = state.synthetic.canvases, state.synthetic_rows(), state.draw_table([-1])
        kernels, classes = state.kernels, state.info.num_classes

        def forward(
            canvases: Tensor, rows: Tensor, real: Tensor, table: Tensor, weights: Weights
        ) -> tuple[Tensor, ...]:
            synthetic, _ = state.decode_drawn(canvases, rows, table)
            return tuple(kernels.features(weights, x) for x in (synthetic, state.prepare_drawn(real, table)))

        def backward(canvases: Tensor, rows: Tensor, table: Tensor, weights: Weights, upstream: Tensor) -> Tensor:
            synthetic, pull_back = state.decode_drawn(canvases, rows, table)
            return pull_back(kernels.pull_back(weights, synthetic, upstream))

        with torch.no_grad():
            support, features = state.graphs.get("ridge forward", forward)(canvases, rows, real, table, weights)
        back = state.graphs.get("ridge backward", backward)
        support = _Support.apply(canvases, support, lambda upstream: back(canvases, rows, table, weights, upstream))
        return support, features.clone(), [[len(x) // classes] * classes for x in (real, rows)]


class _Support(torch.autograd.Function):
    """Known features of the distilled images, with their backward pass to the canvases."""

    @staticmethod
    def forward(ctx: Any, canvases: Tensor, support: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return support.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return ctx.back(upstream.contiguous()).clone(), None, None
