"""Plain SGD inside an objective: unrolled steps that the loss after them can be differentiated through.

Shared by trajectory matching (MTT) and back-propagation through training (DD).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, vjp
from torch.nn import functional as F

from dreamlib.kernels import Weights


class InnerSGD:
    """θ ← θ − lr · ∂CE(x, y)/∂θ on one architecture, differentiable in θ, x, y and lr.

    ``network`` gives the structure and is left alone: weights are arguments, its buffers (the running statistics of a
    batch norm) are copied. With ``recompute`` a step keeps its inputs only and repeats its arithmetic on the way back:
    memory then grows with the weights, not with the activations, at the price of one more forward and backward pass a
    step. Both ways give the same numbers but for the order of a sum.

    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.zero_()
    >>> sgd = InnerSGD(net)
    >>> moved = sgd.step(dict(net.named_parameters()), torch.ones(1, 2), torch.tensor([0]), torch.tensor(2.0))
    >>> moved["weight"].tolist()  # the gradient of log-softmax at zero: ∓ 1/2
    [[1.0, 1.0], [-1.0, -1.0]]
    """

    def __init__(self, network: nn.Module, recompute: bool = True) -> None:
        self.network, self.recompute = network, recompute
        self._buffers = {name: tensor.detach().clone() for name, tensor in network.named_buffers()}

    def loss(self, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of prepared images x (n, C, H, W); y is (n,) class numbers or (n, K) probabilities."""
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}  # a batch norm writes to its own
        logits = functional_call(self.network, {**weights, **buffers}, (x,))
        return F.cross_entropy(logits, y.to(logits.dtype) if y.is_floating_point() else y)

    def _step(self, weights: Weights, x: Tensor, y: Tensor, lr: Tensor) -> Weights:
        gradient = grad(self.loss)(weights, x, y)
        return {name: w - (lr * gradient[name]).to(w.dtype) for name, w in weights.items()}

    def step(self, weights: Weights, x: Tensor, y: Tensor, lr: Tensor) -> Weights:
        """The weights after one step; ``lr`` is a scalar tensor."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self._step(weights, x, y, lr)
        return dict(zip(weights, _Recomputed.apply(self, tuple(weights), x, y, lr, *weights.values()), strict=True))

    def run(self, weights: Weights, batches: Sequence[tuple[Tensor, Tensor]], rates: Sequence[Tensor]) -> Weights:
        """The weights after one step on each (x, y) batch, with its own rate."""
        for (x, y), lr in zip(batches, rates, strict=True):
            weights = self.step(weights, x, y, lr)
        return weights


class _Recomputed(torch.autograd.Function):
    """One step that saves its inputs alone. Not torch.utils.checkpoint: torch.func refuses the hooks it is made of."""

    @staticmethod
    def forward(
        ctx: Any, sgd: InnerSGD, names: tuple[str, ...], x: Tensor, y: Tensor, lr: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.sgd, ctx.names = sgd, names
        ctx.save_for_backward(x, y, lr, *values)
        return tuple(sgd._step(dict(zip(names, values, strict=True)), x, y, lr).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        x, y, lr, *values = ctx.saved_tensors
        weights, soft = dict(zip(ctx.names, values, strict=True)), y.is_floating_point()

        # Class numbers have no derivative, so y is an argument of vjp only where it is probabilities.
        def again(weights: Weights, x: Tensor, lr: Tensor, *labels: Tensor) -> Weights:
            return ctx.sgd._step(weights, x, labels[0] if soft else y, lr)

        _, pull_back = vjp(again, weights, x, lr, *([y] if soft else []))
        of_weights, of_x, of_lr, *of_y = pull_back(dict(zip(ctx.names, upstream, strict=True)))
        return None, None, of_x, of_y[0] if soft else None, of_lr, *of_weights.values()


def parameters_of(network: nn.Module) -> Weights:
    """A network's parameters by name, detached: where an unrolled training starts."""
    return {name: p.detach() for name, p in network.named_parameters()}
