"""How the matching of one inner iteration is executed: the same mathematics in different places and orders.

The loop in ``dreamlib.distill`` describes an iteration as a ``MatchingStep`` and hands it to a ``Strategy``, which adds
every class's gradient to the leaves and yields the losses. ``choose_strategy`` picks the one that suits the machine.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreamlib._engine import ranks
from dreamlib._engine.compiled_network import SHAPES, CompiledNetwork
from dreamlib._engine.cuda_graphs import CudaGraphed, CudaGraphs, on_another_stream
from dreamlib._engine.threads import Workers, shares

LOSSES_READ_EVERY = 50  # iterations, on a GPU, where reading a loss waits for all work queued before it

LossFunction = Callable[[Sequence[int], nn.Module, CompiledNetwork], Iterator[tuple[int, Tensor]]]
ClassLosses = Generator[tuple[int, Tensor], None, None]  # (class, detached loss)


@dataclass(frozen=True)
class MatchingStep:
    """What one inner iteration has to match.

    objective: name of the objective, for errors.
    losses: (classes, network, kernels) → (class, loss) of each class; see ``dreamlib.matching.Objective.losses``.
    network: the network to match on.
    leaves: tensors that gradients are added to: the canvases and whatever else is learned.
    """

    objective: str
    losses: LossFunction
    network: nn.Module
    leaves: Sequence[Tensor]


@dataclass
class Strategy:
    """Match class after class in the calling thread. Base class of all strategies.

    kernels: the compiled functions of the network's architecture.
    classes: the classes that this process matches and clusters.
    num_classes: number K of classes of the data set.
    workers: threads for work on several classes at a time.
    shared: whether ranks share the classes, so that gradients are summed over ranks.
    graphs: CUDA graphs of the run.
    """

    losses_read_every: ClassVar[int] = 1

    kernels: CompiledNetwork
    classes: Sequence[int]
    num_classes: int
    workers: Workers = field(default_factory=Workers)
    shared: bool = False
    graphs: CudaGraphs = field(default_factory=CudaGraphs)

    @property
    def one_graph(self) -> bool:
        """Whether an objective should match all classes in one CUDA graph if it can."""
        return False

    @property
    def overlaps_training(self) -> bool:
        """Whether ``match`` can run the network's training at the same time, as its ``concurrent_job``."""
        return self.one_graph

    def thread_kernels(self) -> CompiledNetwork:
        """Return kernels for one call from one of several threads."""
        return self.kernels

    def cuda_graph(self, name: str, function: Callable[..., Any]) -> CudaGraphed | None:
        """Return ``function`` as a CUDA graph of this run; None if functions are not captured."""
        compute = self.kernels.compute
        if compute.device.type != "cuda" or not compute.compile:
            return None
        return self.graphs.get(name, function)

    def gather_classes(self, state: dict[str, dict[int, Tensor]]) -> dict[str, dict[int, Tensor]]:
        """Return tensors by name and class from all ranks (collective); unchanged if ranks do not share the classes."""
        if not self.shared:
            return state
        on_cpu = {name: {label: tensor.cpu() for label, tensor in by_class.items()} for name, by_class in state.items()}
        merged: dict[str, dict[int, Tensor]] = {name: {} for name in state}
        for rank_state in ranks.gather([on_cpu]):
            for name, by_class in rank_state.items():
                merged[name] |= by_class
        return merged

    def release(self) -> None:
        """Free the memory of the run's CUDA graphs."""
        self.graphs.forget()

    def match(self, step: MatchingStep, concurrent_job: Callable[[], None] | None = None) -> ClassLosses:
        """Add each class's gradient to ``step.leaves`` and yield (class, detached loss).

        ``concurrent_job`` is other work to do meanwhile, for a strategy that ``overlaps_training``; it may change
        ``step.network``. Close the generator to wait for all threads.
        """
        losses = self._match(step, concurrent_job)
        return self._summed_over_ranks(step, losses) if self.shared else losses

    def _match(self, step: MatchingStep, concurrent_job: Callable[[], None] | None = None) -> ClassLosses:
        for label, loss in step.losses(self.classes, step.network, self.kernels):
            loss.sum().backward(inputs=list(step.leaves))
            yield label, loss.detach()

    def _summed_over_ranks(self, step: MatchingStep, losses: ClassLosses) -> ClassLosses:
        """Sum the gradients over ranks, and yield the losses of all classes on every rank.

        The gradient of a class is zero outside its own canvases, so the sum has the bits of a single process.
        """
        with closing(losses):
            by_class = list(losses)
        _check_classes(step.objective, [label for label, _ in by_class], self.classes)
        for leaf in step.leaves:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        all_losses = torch.zeros(self.num_classes, dtype=torch.float64, device=self.kernels.compute.device)
        all_losses[list(self.classes)] = torch.stack([loss for _, loss in by_class]).double()
        ranks.sum_over_workers([*(leaf.grad for leaf in step.leaves if leaf.grad is not None), all_losses])
        yield from enumerate(all_losses)


@dataclass
class SideBySide(Strategy):
    """Match several classes at a time on a CPU's cores, each on its own threads and its own copy of the network.

    Meanwhile one of these threads runs the network's training.
    """

    @property
    def overlaps_training(self) -> bool:
        """See ``Strategy.overlaps_training``."""
        return True

    def thread_kernels(self) -> CompiledNetwork:
        """See ``Strategy.thread_kernels``."""
        return self.kernels.thread_local()

    def _match(self, step: MatchingStep, concurrent_job: Callable[[], None] | None = None) -> ClassLosses:
        spare: SimpleQueue[tuple[nn.Module, CompiledNetwork]] = SimpleQueue()
        for _ in range(self.workers.parallel):
            spare.put((copy.deepcopy(step.network), self.kernels.thread_local()))

        def match_class(label: int) -> tuple[int, Tensor, tuple[Tensor | None, ...]]:
            network, kernels = spare.get()
            try:
                losses = list(step.losses((label,), network, kernels))
            finally:
                spare.put((network, kernels))
            _check_classes(step.objective, [number for number, _ in losses], (label,))
            loss = losses[0][1]
            return label, loss.detach(), torch.autograd.grad(loss.sum(), step.leaves, allow_unused=True)

        kinds = {"matching", "training"} if concurrent_job else {"matching"}
        tasks = [partial(match_class, label) for label in self.classes]
        with closing(self.workers.in_order(kinds, tasks, concurrent_job)) as results:
            for label, loss, gradients in results:
                for leaf, gradient in zip(step.leaves, gradients, strict=True):
                    if gradient is not None:
                        leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad.add_(gradient)
                yield label, loss


@dataclass
class RunAhead(Strategy):
    """Queue iterations on a GPU without waiting for their losses.

    If steps are captured as CUDA graphs (``CompiledNetwork.uses_cuda_graphs``), all classes are matched in one graph
    while the network is trained on another stream; matching then reads a copy of its weights.
    """

    losses_read_every: ClassVar[int] = LOSSES_READ_EVERY
    _copy: nn.Module | None = None

    @property
    def one_graph(self) -> bool:
        """See ``Strategy.one_graph``."""
        return self.kernels.uses_cuda_graphs

    def _match(self, step: MatchingStep, concurrent_job: Callable[[], None] | None = None) -> ClassLosses:
        if concurrent_job is None:
            yield from super()._match(step)
            return
        with torch.no_grad():
            self._copy = self._copy or copy.deepcopy(step.network)
            torch._foreach_copy_(list(self._copy.parameters()), list(step.network.parameters()))
        with on_another_stream(self.kernels.compute.device) as other_stream:
            yield from super()._match(replace(step, network=self._copy))
            with other_stream:
                concurrent_job()


def _check_classes(objective: str, labels: list[int], expected: Sequence[int]) -> None:
    if labels != list(expected):
        raise RuntimeError(
            f"objective '{objective}' gave losses of classes {labels}, expected {list(expected)}: loop over "
            "state.classes, or set by_class = False (see Objective)"
        )


def check_workers(workers: int, num_classes: int, in_turn: bool) -> None:
    """Raise ValueError unless that many processes can share the classes; ``in_turn`` as in ``choose_strategy``."""
    if workers > 1 and in_turn:
        raise ValueError(
            f"compute.workers = {workers}, but image_update: per_class takes the classes in turn; use batched or "
            "once_equivalent, or workers: 1"
        )
    if workers > num_classes:
        raise ValueError(
            f"compute.workers = {workers} is more than the {num_classes} classes that workers share; use at most "
            f"{num_classes}"
        )


def choose_strategy(
    kernels: CompiledNetwork, class_sizes: Tensor, *, by_class: bool, in_turn: bool, parallel_classes: int
) -> Strategy:
    """Return the fastest strategy for this machine, process group and objective.

    class_sizes: (K,), number of real images per class.
    by_class: whether the objective has one loss per class, which ranks and threads may share.
    in_turn: whether pixels step after each class, so that classes cannot be matched at the same time.
    parallel_classes: maximum number of classes at a time on a CPU.

    Raise ValueError if ranks cannot share the classes.
    """
    num_classes, world = len(class_sizes), ranks.world()
    check_workers(world, num_classes, in_turn)
    on_cpu = kernels.compute.device.type == "cpu"
    # Each class size is a batch shape, and clustering may add another; beyond SHAPES, functions run uncompiled and must
    # not run in parallel: see CompiledNetwork.thread_local.
    few_shapes = len(class_sizes.unique()) <= SHAPES // 2
    threads = torch.get_num_threads() if on_cpu and by_class and not in_turn and few_shapes else 1
    # Use the smallest share among ranks, so that all ranks train on equally many threads and get the same bits.
    fewest = num_classes // (world if by_class else 1)
    workers = Workers(*next(shares(fewest, threads, parallel_classes)))
    classes = ranks.my_share(range(num_classes)) if by_class else range(num_classes)
    kind = Strategy
    if kernels.compute.device.type == "cuda" and world == 1:
        kind = RunAhead
    elif workers.parallel > 1:
        kind = SideBySide
    return kind(kernels, classes, num_classes, workers, shared=by_class and world > 1)
