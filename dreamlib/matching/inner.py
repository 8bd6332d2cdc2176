"""Training inside an objective: steps of SGD or Adam through which a later loss can be differentiated.

Shared by trajectory matching (MTT), back-propagation through training (DD, RaT-BPTT) and the evaluation that replays
such training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, vjp
from torch.nn import functional as F

from dreamlib._engine.compiled_network import Weights
from dreamlib.errors import unknown

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
FIRST, SECOND, COUNT = "first moment of ", "second moment of ", "steps taken"  # Adam's state, carried with the weights


class InnerTraining:
    """Steps on the cross-entropy of one architecture, differentiable in weights, images, labels and rates.

    network: provides the architecture and is not changed: weights are arguments, and buffers (the running statistics
        of batch norm) are copied.
    recompute: store only the inputs of a step and repeat its arithmetic in the backward pass. Memory then grows with
        the weights and not with the activations, at the cost of one more forward and backward pass per step. Results
        are equal up to the order of summation.
    optimizer: 'sgd', θ ← θ − lr · ∂CE(x, y)/∂θ, or 'adam', whose moments are carried with the weights (``start``).

    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.zero_()
    >>> sgd = InnerTraining(net)
    >>> moved = sgd.step(dict(net.named_parameters()), torch.ones(1, 2), torch.tensor([0]), torch.tensor(2.0))
    >>> moved["weight"].tolist()  # the gradient of log-softmax at zero: ∓ 1/2
    [[1.0, 1.0], [-1.0, -1.0]]
    """

    def __init__(self, network: nn.Module, recompute: bool = True, optimizer: str = "sgd") -> None:
        if optimizer not in ("sgd", "adam"):
            raise unknown("inner optimiser", optimizer, ["sgd", "adam"])
        self.network, self.recompute, self.optimizer = network, recompute, optimizer
        self._buffers = {name: tensor.detach().clone() for name, tensor in network.named_buffers()}

    def start(self, weights: Weights) -> Weights:
        """Return the input of the first step: the weights, and Adam's moments at zero."""
        if self.optimizer == "sgd":
            return weights
        zeros = {kind + name: torch.zeros_like(w) for kind in (FIRST, SECOND) for name, w in weights.items()}
        return {
            **weights,
            **zeros,
            COUNT: torch.zeros((), dtype=torch.float64, device=next(iter(weights.values())).device),
        }

    @staticmethod
    def weights(carried: Weights) -> Weights:
        """Return the weights without Adam's state."""
        return {name: w for name, w in carried.items() if not name.startswith((FIRST, SECOND)) and name != COUNT}

    def loss(self, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of prepared images x (n, C, H, W); y: (n,) classes or (n, K) probabilities."""
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}  # a batch norm writes to them
        logits = functional_call(self.network, {**weights, **buffers}, (x,))
        return F.cross_entropy(logits, y.to(logits.dtype) if y.is_floating_point() else y)

    def _step(self, carried: Weights, x: Tensor, y: Tensor, lr: Tensor) -> Weights:
        weights = self.weights(carried)
        gradient = grad(self.loss)(weights, x, y)
        if self.optimizer == "sgd":
            return {name: w - (lr * gradient[name]).to(w.dtype) for name, w in weights.items()}
        (b1, b2), t = BETAS, carried[COUNT] + 1
        moved = {COUNT: t}
        for name, w in weights.items():
            first = b1 * carried[FIRST + name] + (1 - b1) * gradient[name]
            second = b2 * carried[SECOND + name] + (1 - b2) * gradient[name].square()
            # ε² inside the root: √v + ε is not differentiable at v = 0.
            scale = (second / (1 - b2**t).to(w.dtype) + EPSILON**2).sqrt()
            moved[name] = w - (lr * first / (1 - b1**t).to(w.dtype) / scale).to(w.dtype)
            moved[FIRST + name], moved[SECOND + name] = first, second
        return {name: moved[name] for name in carried}

    def step(self, carried: Weights, x: Tensor, y: Tensor, lr: Tensor) -> Weights:
        """Return weights and optimiser state after one step; ``lr`` is a scalar tensor."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self._step(carried, x, y, lr)
        return dict(zip(carried, _Recomputed.apply(self, tuple(carried), x, y, lr, *carried.values()), strict=True))

    def run(self, carried: Weights, batches: Sequence[tuple[Tensor, Tensor]], rates: Sequence[Tensor]) -> Weights:
        """Return weights and optimiser state after one step on each (x, y) batch, each with its own rate."""
        for (x, y), lr in zip(batches, rates, strict=True):
            carried = self.step(carried, x, y, lr)
        return carried


class _Recomputed(torch.autograd.Function):
    """One step that saves only its inputs. torch.utils.checkpoint uses hooks that torch.func does not support."""

    @staticmethod
    def forward(
        ctx: Any, training: InnerTraining, names: tuple[str, ...], x: Tensor, y: Tensor, lr: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.training, ctx.names = training, names
        ctx.save_for_backward(x, y, lr, *values)
        return tuple(training._step(dict(zip(names, values, strict=True)), x, y, lr).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        x, y, lr, *values = ctx.saved_tensors
        carried, soft = dict(zip(ctx.names, values, strict=True)), y.is_floating_point()

        # Class numbers have no derivative, so y is an argument of vjp only if it holds probabilities.
        def recompute(carried: Weights, x: Tensor, lr: Tensor, *labels: Tensor) -> Weights:
            return ctx.training._step(carried, x, labels[0] if soft else y, lr)

        _, pull_back = vjp(recompute, carried, x, lr, *([y] if soft else []))
        grad_carried, grad_x, grad_lr, *grad_y = pull_back(dict(zip(ctx.names, upstream, strict=True)))
        return None, None, grad_x, grad_y[0] if soft else None, grad_lr, *grad_carried.values()


def parameters_of(network: nn.Module) -> Weights:
    """Return a network's parameters by name, detached: the initial weights of unrolled training."""
    return {name: p.detach() for name, p in network.named_parameters()}
