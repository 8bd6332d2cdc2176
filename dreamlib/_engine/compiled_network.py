"""A network's loss, logits, features and gradients as pure functions of its weights, compiled if that saves time.

Weights are arguments, so one compiled function serves every fresh network of a run.
"""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value
from torch.nn import functional as F

from dreamlib._engine.compilation import compilation_works
from dreamlib._engine.compute import Compute
from dreamlib._engine.cuda_graphs import CudaGraphs, side_streams
from dreamlib._engine.release_python_lock import release_python_lock

Weights = dict[str, Tensor]
SHAPES = 64  # maximum number of batch shapes that a function is compiled for; torch runs further ones uncompiled
MAX_GRAPHED_ELEMENTS = 2**22  # largest batch captured as a CUDA graph, about 1,300 colour images of 32 × 32


def weights_of(network: nn.Module) -> Weights:
    """Return a network's parameters and buffers by name, as the compiled functions take them."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


class Compilable(nn.Module):
    """Base class of the networks on which ``torch.compile`` saves more time than it takes."""


class CompiledNetwork:
    """Loss, predictions and weight gradients of one architecture.

    template: gives the structure; its own weights are never used.
    compute: with ``compute.compile``, a ``Compilable`` network is compiled by ``torch.compile``, once per batch shape;
        otherwise, and if ``compilation_works`` is false, the same functions run uncompiled. Results differ by rounding
        only.

    The compiler is loaded when a function is first requested: this takes seconds, and a run without iterations needs
    none.
    """

    def __init__(self, template: nn.Module, compute: Compute) -> None:
        self.compute = compute
        # Two copies, because a compiled function is tied to the mode it was traced in.
        self._train = copy.deepcopy(template).train().requires_grad_(False)
        self._eval = _Features(copy.deepcopy(template).eval().requires_grad_(False))
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self.graphs = CudaGraphs()

    @cached_property
    def compile(self) -> bool:
        """Whether functions are compiled."""
        wanted = self.compute.compile and isinstance(self._train, Compilable)
        return wanted and compilation_works(self.compute.device)

    @cached_property
    def logits(self) -> Callable[[Weights, Tensor], Tensor]:
        """(weights, images (n, C, H, W)) → logits (n, K), in evaluation mode."""
        return self._wrap(lambda weights, x: functional_call(self._eval.network, weights, (x,)))

    @cached_property
    def features(self) -> Callable[[Weights, Tensor], Tensor]:
        """(weights, images (n, C, H, W)) → features (n, D), in evaluation mode."""
        return self._wrap(self._features)

    @cached_property
    def training_loss(self) -> Callable[..., Tensor]:
        """(weights, images, labels a, labels b, λ) → λ · cross-entropy to a + (1 − λ) · that to b, in training mode."""
        return self._wrap(self._training_loss)

    @property
    def pure(self) -> bool:
        """Whether a compiled training step is a function of weights and images alone: no running statistics."""
        return self.compile and not list(self._train.buffers())

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether steps are captured as CUDA graphs: only pure ones, on a GPU."""
        return self.pure and self.compute.device.type == "cuda"

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compile:
            return function
        # Shapes are static, except for the batch size on a CPU, where dynamic code is as fast.
        # By default torch stops compiling after eight shapes; a study has more in one process.
        compiled = torch.compile(function, dynamic=False, recompile_limit=SHAPES)
        if self.compute.device.type != "cpu":
            return compiled
        release_python_lock()

        def with_dynamic_batch(*arguments: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.ndim and len(argument) > 1:
                    torch._dynamo.maybe_mark_dynamic(argument, 0)  # maybe: a double backward needs static shapes
            return compiled(*arguments)

        return with_dynamic_batch

    def thread_local(self) -> "CompiledNetwork":
        """Return an instance for one of several threads.

        An uncompiled call writes its weights into the template while it runs, so each thread needs its own template.
        Compiled functions have no template and are shared; their first calls compile and must not run at the same
        time. With more than ``SHAPES`` batch shapes they run uncompiled, so then only one thread may call them.
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
        """Return (gradients, loss) of ``training_loss`` with respect to all weights."""
        with torch.no_grad():
            return self.compiled("training", grad_and_value(self._training_loss))(weights, x, a, b, lam)

    def pull_back(self, weights: Weights, x: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient with respect to x (n, C, H, W) of Σ ``features`` · ``upstream`` (n, D)."""

        def weighted_sum(x: Tensor, weights: Weights, upstream: Tensor) -> Tensor:
            return (self._features(weights, x).to(upstream.dtype) * upstream).sum()

        with torch.no_grad():
            return self.compiled("pull back", grad(weighted_sum))(x, weights, upstream)

    def compiled(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, compiled if this network is; equal keys return the same compiled function.

        Variables that the function closes over must be equal for equal keys; they live as long as this object.
        """
        if key not in self._compiled:
            self._compiled[key] = self._wrap(function)
        return self._compiled[key]

    def graphed(self, name: str) -> Callable[[Weights, Tensor], Tensor]:
        """Return ``logits`` or ``features`` without gradients, as a CUDA graph if steps are captured.

        Batches of more than ``MAX_GRAPHED_ELEMENTS`` elements are not captured: their activations would stay in memory
        as long as this object.
        """
        function = getattr(self, name)
        if not self.uses_cuda_graphs:
            return function
        graph = self.graphs.get(name, function)

        def graphed(weights: Weights, x: Tensor) -> Tensor:
            if x.numel() > MAX_GRAPHED_ELEMENTS:
                return function(weights, x)
            return graph(weights, x).clone()  # the next call overwrites the output of this one

        return graphed

    def _class_loss(self, matched: Weights, fixed: Weights, x: Tensor, y: Tensor) -> Tensor:
        # Copies, because a batch norm in training mode writes to its statistics, and matching must leave them alone.
        weights = {**matched, **{name: tensor.clone() for name, tensor in fixed.items()}}
        return F.cross_entropy(functional_call(self._train, weights, (x,)), y)

    def weight_gradient(self, matched: Weights, fixed: Weights, x: Tensor, y: Tensor) -> Weights:
        """Return ∂(mean cross-entropy)/∂matched for images x (n, C, H, W) with labels y (n,), constant in x."""
        with torch.no_grad():
            return self.compiled("gradient", grad(self._class_loss))(matched, fixed, x, y)

    def match(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        matched: Weights,
        fixed: Weights,
        target: Weights,
    ) -> Tensor:
        """Return Σ distance(target, weight gradient of x), a scalar that can be back-propagated to x.

        The gradient with respect to x is computed together with the loss, by the same compiled function, because a
        double backward cannot be compiled through autograd's tape.
        """
        with torch.no_grad():
            gradient, value = self._matching(distance)(x.detach(), y, matched, fixed, target)
        return KnownGradient.apply(x, value, gradient)

    def _matching(self, distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
        def loss(x: Tensor, y: Tensor, matched: Weights, fixed: Weights, target: Weights) -> Tensor:
            gradients = grad(self._class_loss)(matched, fixed, x, y)
            return torch.stack([distance(target[name], gradients[name]) for name in gradients]).sum()

        return self.compiled(("matching", distance), grad_and_value(loss))

    def match_together(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        real: Tensor,
        x: Tensor,
        labels: Tensor,
        matched: Weights,
        fixed: Weights,
    ) -> tuple[Tensor, Tensor]:
        """Match each of K classes to the real images of that class; return (values (K,), gradient with respect to x).

        real: (K·n, C, H, W), ordered by class as ``labels``, equally many images of each class.
        x: (K·m, C, H, W), ordered likewise.
        labels: (K,), the classes.

        On a GPU the kernels of several classes run at the same time.
        """
        gradients, values, classes = [], [], len(labels)
        parts = zip(real.chunk(classes), x.chunk(classes), labels.split(1), strict=True)
        for (class_real, class_x, label), stream in side_streams(parts, real.is_cuda):
            with stream, torch.no_grad():
                target = self.weight_gradient(matched, fixed, class_real, label.repeat(len(class_real)))
                gradient, value = self._matching(distance)(class_x, label.repeat(len(class_x)), matched, fixed, target)
            gradients.append(gradient)
            values.append(value)
        return torch.stack(values), torch.cat(gradients)


class _Features(nn.Module):
    """Expose ``features`` as ``forward``, the only method functional_call calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


class KnownGradient(torch.autograd.Function):
    """A value whose gradient with respect to ``x`` is known; or K values, one for each of K equal parts of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Return the value; see ``torch.autograd.Function``."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Return the known gradient times the upstream gradient."""
        (gradient,) = ctx.saved_tensors
        if upstream.ndim:
            each = upstream.repeat_interleave(len(gradient) // len(upstream))
            upstream = each.view(-1, *[1] * (gradient.ndim - 1))
        return (upstream * gradient).to(gradient.dtype), None, None
