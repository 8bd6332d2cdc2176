"""The hot inner functions of a network as pure functions of its weights, compiled where that pays.

Weights are arguments, so one compiled function serves every fresh network of a run.
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value
from torch.nn import functional as F

from dreamlib.compute import Compute

Weights = dict[str, Tensor]
_log = logging.getLogger("dreamlib")


@cache
def compiler_found() -> bool:
    """Whether torch.compile can work on this machine's CPU; says once, in one line, when it cannot."""
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    if not found:
        _log.warning("no C++ compiler found: running uncompiled, about three times slower (install g++ or clang++)")
    return found


def weights_of(network: nn.Module) -> Weights:
    """A network's parameters and buffers by name: what the kernels take."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


class Kernels:
    """Loss, predictions and weight gradients of one architecture.

    ``template`` gives the structure; its own weights are never used. With ``compute.compile``, networks that say they
    compile well (``compiles``) are compiled by ``torch.compile``, once per batch shape; otherwise the same functions
    run as they are. Compiled and uncompiled results differ by rounding only.
    """

    def __init__(self, template: nn.Module, compute: Compute) -> None:
        self.compute = compute
        self.compile = compute.compile and getattr(template, "compiles", False) and compiler_found()
        # Two copies, because a compiled function is tied to the mode it was traced in.
        self._train = copy.deepcopy(template).train().requires_grad_(False)
        self._eval = _Features(copy.deepcopy(template).eval().requires_grad_(False))
        self.logits = self._wrap(lambda weights, x: functional_call(self._eval.network, weights, (x,)))
        self.features = self._wrap(self._features)
        self.training_loss = self._wrap(self._training_loss)
        self._made: dict[Any, Callable[..., Any]] = {}

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compile:
            return function
        # Static shapes: a run sees few batch sizes, and each is worth its own code, once for each number of threads.
        # A study meets more of them in one process than the eight after which torch would run uncompiled.
        return torch.compile(function, dynamic=False, recompile_limit=64)

    def of_a_thread(self) -> "Kernels":
        """The same for one of several threads: an uncompiled call writes its weights into the template while it runs.

        Compiled functions have no template and are shared; first calls compile, one thread after the other.
        """
        return self if self.compile else Kernels(self._train, self.compute)

    def _features(self, weights: Weights, x: Tensor) -> Tensor:
        return functional_call(self._eval, {f"network.{k}": v for k, v in weights.items()}, (x,))

    def _training_loss(self, weights: Weights, x: Tensor, a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
        logits = functional_call(self._train, weights, (x,))
        return lam * F.cross_entropy(logits, a) + (1 - lam) * F.cross_entropy(logits, b)

    def _class_loss(self, matched: Weights, fixed: Weights, x: Tensor, y: Tensor) -> Tensor:
        # Copies, because a batch norm in training mode writes to its statistics, and matching must leave them alone.
        weights = {**matched, **{name: tensor.clone() for name, tensor in fixed.items()}}
        return F.cross_entropy(functional_call(self._train, weights, (x,)), y)

    def weight_gradient(self, matched: Weights, fixed: Weights, x: Tensor, y: Tensor) -> Weights:
        """∂(mean cross-entropy)/∂matched for images x (n, C, H, W) with labels y (n,); no gradient to x is computed."""
        if "gradient" not in self._made:
            self._made["gradient"] = self._wrap(grad(self._class_loss))
        with torch.no_grad():
            return self._made["gradient"](matched, fixed, x, y)

    def match(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        matched: Weights,
        fixed: Weights,
        target: Weights,
    ) -> Tensor:
        """Σ distance(target, weight gradient of x): a scalar whose backward pass reaches x, itself computed at once.

        The gradient with respect to x comes out of the same compiled function as the loss, because a double backward
        cannot be compiled through autograd's tape.
        """
        if distance not in self._made:

            def loss(x: Tensor, y: Tensor, matched: Weights, fixed: Weights, target: Weights) -> Tensor:
                ours = grad(self._class_loss)(matched, fixed, x, y)
                return torch.stack([distance(target[name], ours[name]) for name in ours]).sum()

            self._made[distance] = self._wrap(grad_and_value(loss))
        with torch.no_grad():
            gradient, value = self._made[distance](x.detach(), y, matched, fixed, target)
        return _KnownGradient.apply(x, value, gradient)


class _Features(nn.Module):
    """``features`` as a forward, because functional_call calls nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient with respect to ``x`` has been computed already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient).to(gradient.dtype), None, None
