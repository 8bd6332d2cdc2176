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

from dreamlib._engine.compute import Compute
from dreamlib._engine.cuda_graphs import CudaGraphed, side_streams
from dreamlib._engine.network import network_traits
from dreamlib._engine.release_python_lock import release_python_lock

Weights = dict[str, Tensor]
SHAPES = 64  # batch shapes a function is compiled for; beyond, torch runs it as it is
RECORDED_PIXELS = 2**22  # numbers of a batch: 1,024 images of 32 × 32 in three colours and a few more
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


class CompiledNetwork:
    """Loss, predictions and weight gradients of one architecture.

    ``template`` gives the structure; its own weights are never used. With ``compute.compile``, networks that say they
    compile well (``compiles``) are compiled by ``torch.compile``, once per batch shape; otherwise the same functions
    run as they are. Compiled and uncompiled results differ by rounding only.
    """

    def __init__(self, template: nn.Module, compute: Compute) -> None:
        self.compute = compute
        self.compile = compute.compile and network_traits(template).compiles and compiler_found()
        # Two copies, because a compiled function is tied to the mode it was traced in.
        self._train = copy.deepcopy(template).train().requires_grad_(False)
        self._eval = _Features(copy.deepcopy(template).eval().requires_grad_(False))
        self.logits = self._wrap(lambda weights, x: functional_call(self._eval.network, weights, (x,)))
        self.features = self._wrap(self._features)
        self.training_loss = self._wrap(self._training_loss)
        self._made: dict[Any, Callable[..., Any]] = {}

    @property
    def pure(self) -> bool:
        """Whether a compiled training step is a function of weights and images alone: no running statistics."""
        return self.compile and not list(self._train.buffers())

    @property
    def replays(self) -> bool:
        """Whether steps are recorded as CUDA graphs: pure ones, on a GPU."""
        return self.pure and self.compute.device.type == "cuda"

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compile:
            return function
        # Static shapes, but for the number of images on a CPU: there, one piece of code is as fast for all of them.
        # A study meets more shapes in one process than the eight after which torch would run uncompiled.
        compiled = torch.compile(function, dynamic=False, recompile_limit=SHAPES)
        if self.compute.device.type != "cpu":
            return compiled
        release_python_lock()

        def for_any_number(*arguments: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.ndim and len(argument) > 1:
                    torch._dynamo.maybe_mark_dynamic(argument, 0)  # a wish: a double backward is compiled for each
            return compiled(*arguments)

        return for_any_number

    def thread_local(self) -> "CompiledNetwork":
        """The same for one of several threads: an uncompiled call writes its weights into the template while it runs.

        Compiled functions have no template and are shared; first calls compile, one thread after the other. That holds
        for up to ``SHAPES`` batch shapes: with more, nothing may run side by side.
        """
        return self if self.compile else CompiledNetwork(self._train, self.compute)

    def _features(self, weights: Weights, x: Tensor) -> Tensor:
        return functional_call(self._eval, {f"network.{k}": v for k, v in weights.items()}, (x,))

    def _training_loss(self, weights: Weights, x: Tensor, a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
        logits = functional_call(self._train, weights, (x,))
        return lam * F.cross_entropy(logits, a) + (1 - lam) * F.cross_entropy(logits, b)

    def training_gradient(
        self, weights: Weights, x: Tensor, a: Tensor, b: Tensor, lam: Tensor
    ) -> tuple[Weights, Tensor]:
        """``training_loss`` and its gradient with respect to all weights: (gradients, loss)."""
        if "training" not in self._made:
            self._made["training"] = self._wrap(grad_and_value(self._training_loss))
        with torch.no_grad():
            return self._made["training"](weights, x, a, b, lam)

    def pull_back(self, weights: Weights, x: Tensor, upstream: Tensor) -> Tensor:
        """The gradient to x (n, C, H, W) of the sum of its ``features`` times ``upstream`` (n, D)."""
        if "pull back" not in self._made:

            def weighed(x: Tensor, weights: Weights, upstream: Tensor) -> Tensor:
                return (self._features(weights, x).to(upstream.dtype) * upstream).sum()

            self._made["pull back"] = self._wrap(grad(weighed))
        with torch.no_grad():
            return self._made["pull back"](x, weights, upstream)

    def compiled(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled where these kernels are, the same one for every call with an equal key.

        What it takes from around it must be the same for equal keys, and is kept as long as these kernels.
        """
        if ("compiled", key) not in self._made:
            self._made["compiled", key] = self._wrap(function)
        return self._made["compiled", key]

    def replayed(self, name: str) -> Callable[[Weights, Tensor], Tensor]:
        """``logits`` or ``features`` without gradients, as a CUDA graph where these kernels record them.

        More than ``RECORDED_PIXELS`` at once are not recorded: the activations would be kept as long as these kernels.
        """
        function = getattr(self, name)
        if not self.replays:
            return function
        recorded = self.recorded(name, function)

        def replayed(weights: Weights, x: Tensor) -> Tensor:
            if x.numel() > RECORDED_PIXELS:
                return function(weights, x)
            return recorded(weights, x).clone()  # the next call writes over what this one gives

        return replayed

    def recorded(self, key: Any, function: Callable[..., Any], high_priority: bool = False) -> Callable[..., Any]:
        """The function as a CUDA graph, the same one for every call with an equal key (see ``CudaGraphed``).

        What the function takes from around it must be the same for equal keys, and is kept as long as these kernels.
        """
        if ("recorded", key) not in self._made:
            self._made["recorded", key] = CudaGraphed(function, high_priority)
        return self._made["recorded", key]

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
        with torch.no_grad():
            gradient, value = self._matching(distance)(x.detach(), y, matched, fixed, target)
        return KnownGradient.apply(x, value, gradient)

    def _matching(self, distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
        if distance not in self._made:

            def loss(x: Tensor, y: Tensor, matched: Weights, fixed: Weights, target: Weights) -> Tensor:
                ours = grad(self._class_loss)(matched, fixed, x, y)
                return torch.stack([distance(target[name], ours[name]) for name in ours]).sum()

            self._made[distance] = self._wrap(grad_and_value(loss))
        return self._made[distance]

    def match_together(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        real: Tensor,
        x: Tensor,
        labels: Tensor,
        matched: Weights,
        fixed: Weights,
    ) -> tuple[Tensor, Tensor]:
        """``match`` for K classes: each one's images against its own real ones; (values (K,), gradient to x).

        ``real`` (K·n, C, H, W) and ``x`` (K·m, C, H, W) are ordered as ``labels`` (K,), with as many images of each
        class. On a GPU the classes' kernels run side by side.
        """
        gradients, values, classes = [], [], len(labels)
        parts = zip(real.chunk(classes), x.chunk(classes), labels.split(1), strict=True)
        for (theirs, ours, label), stream in side_streams(parts, real.is_cuda):
            with stream, torch.no_grad():
                target = self.weight_gradient(matched, fixed, theirs, label.repeat(len(theirs)))
                gradient, value = self._matching(distance)(ours, label.repeat(len(ours)), matched, fixed, target)
            gradients.append(gradient)
            values.append(value)
        return torch.stack(values), torch.cat(gradients)


class _Features(nn.Module):
    """``features`` as a forward, because functional_call calls nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


class KnownGradient(torch.autograd.Function):
    """A value whose gradient with respect to ``x`` has been computed already; or one for each of K equal parts of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """The value; see ``torch.autograd.Function``."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """The known gradient times what comes from above."""
        (gradient,) = ctx.saved_tensors
        if upstream.ndim:
            each = upstream.repeat_interleave(len(gradient) // len(upstream))
            upstream = each.view(-1, *[1] * (gradient.ndim - 1))
        return (upstream * gradient).to(gradient.dtype), None, None
