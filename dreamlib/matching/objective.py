"""The interface of an objective: its input (``MatchState``) and its methods (``Objective``)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.cuda_graphs import CudaGraphs
from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo
from dreamlib.matching.experts import Experts
from dreamlib.sampling.real_batches import Sampler
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation, AugmentationDraw

OBJECTIVES: Registry[type["Objective"]] = Registry("objective")


@dataclass
class MatchState:
    """Everything that a matching step may read.

    synthetic: the distilled set; its ``canvases`` and ``extras`` are the leaves that gradients must reach.
    network: the current network; an objective must leave it unchanged.
    kernels: its compiled functions.
    sampler: chooses the real images; ``sampler.data`` holds all of them.
    iteration: inner iterations since the start of the run.
    synthetic_batch: maximum number of decoded images per class in a step.
    classes: the classes to compute losses for: all, a rank's share, or one of several matched concurrently.
    together: whether to match all classes in one function if the objective can, which is fastest on a GPU.
    graphs: the CUDA graphs of the run, for functions that close over values that are constant during a run: ``info``,
        ``augmentation``, ``kernels``, ``classes`` and all of ``synthetic`` except its canvases.

    Randomness comes from ``rng``, a generator created for (seed, purpose, iteration), so that a resumed run draws the
    same numbers as an uninterrupted one.
    """

    synthetic: SyntheticSet
    network: nn.Module
    kernels: CompiledNetwork
    sampler: Sampler
    info: DatasetInfo
    augmentation: Augmentation
    seed: int
    iteration: int
    synthetic_batch: int
    classes: Sequence[int] = field(default=())
    together: bool = False
    graphs: CudaGraphs = field(default_factory=CudaGraphs)

    def __post_init__(self) -> None:
        self.classes = self.classes or range(self.info.num_classes)

    def rng(self, *purpose: str | int) -> torch.Generator:
        """Return the generator of one purpose at this iteration."""
        return generator(self.seed, *purpose, self.iteration)

    def draw(self, label: int) -> AugmentationDraw:
        """Return the siamese augmentation of one class: one draw for all its images, real and synthetic."""
        return self.augmentation.draw(1, tuple(self.synthetic.canvases.shape[1:]), self.rng("augment", label))

    def prepare_drawn(self, images: Tensor, table: Tensor) -> Tensor:
        """Return prepared images; consecutive equal parts take one row of ``table`` each (see ``draw_table``)."""
        return self._prepared()[0](images, table)

    def _prepared(self) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]:
        """Return ``prepare_drawn`` and its backward pass (images, table, upstream) → gradient, both compiled."""
        augmentation, info, compute = self.augmentation, self.info, self.kernels.compute

        def forward(images: Tensor, table: Tensor) -> Tensor:
            rows = table.repeat_interleave(len(images) // len(table), 0)
            draw = augmentation.from_table(rows, tuple(images.shape[2:]))
            return compute.cast(augmentation.apply(info.normalise(images), draw))

        def backward(images: Tensor, table: Tensor, upstream: Tensor) -> Tensor:
            return torch.func.vjp(lambda images: forward(images, table), images)[1](upstream)[0]

        key = augmentation, info
        compiled = self.kernels.compiled
        return compiled(("prepare", *key), forward), compiled(("prepare back", *key), backward)

    def draw_table(self, labels: Sequence[int]) -> Tensor:
        """Return ``draw`` of each label as a row of a table on the device, copied in a single transfer."""
        u = torch.cat([self.augmentation.uniform(1, self.rng("augment", label)) for label in labels])
        draw = self.augmentation.from_uniform(u, tuple(self.synthetic.canvases.shape[1:]))
        return self.send(draw.table())

    def send(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device, copied asynchronously."""
        return tensor.to(self.synthetic.canvases.device, non_blocking=True)

    def real_batches(self) -> Tensor | None:
        """Return ``real_images`` of all ``classes``, concatenated; None if the batches differ in size."""
        rows = [self.sampler.rows(label, self.iteration) for label in self.classes]
        equal = len({len(class_rows) for class_rows in rows}) == 1
        return self.sampler.data.pixels(torch.cat(rows)) if equal else None

    def synthetic_rows(self) -> Tensor:
        """Return the rows, among all decoded images, of ``synthetic_images`` of ``classes``; on the device."""
        sizes, rows = self.synthetic.decoded_sizes, []
        for label in self.classes:
            part = self._sampled_rows(label, sizes[label])
            rows.append((torch.arange(sizes[label]) if part is None else part) + sum(sizes[:label]))
        return self.send(torch.cat(rows))

    def decode_drawn(self, canvases: Tensor, rows: Tensor, table: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the decoded images ``rows``, prepared, and a function from their gradient to that of the canvases."""
        images, to_canvases = torch.func.vjp(
            lambda canvases: replace(self.synthetic, canvases=canvases).decode_images().index_select(0, rows), canvases
        )
        forward, backward = self._prepared()
        return forward(images, table), lambda upstream: to_canvases(backward(images, table, upstream))[0]

    def prepare(self, images: Tensor, draw: AugmentationDraw) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] as the network takes them: normalised, augmented, cast."""
        return self.kernels.compute.cast(self.augmentation.apply(self.info.normalise(images), draw))

    def real_images(self, label: int) -> Tensor:
        """Return this iteration's real batch of one class, (n, C, H, W) in [0, 1], without gradient."""
        return self.sampler.data.pixels(self.sampler.rows(label, self.iteration))

    def synthetic_images(self, label: int) -> Tensor:
        """Return decoded images of one class (≤ synthetic_batch, C, H, W), a random subset if there are more."""
        images = self.synthetic.decode_class(label)
        part = self._sampled_rows(label, len(images))
        return images if part is None else images[part.to(images.device)]

    def _sampled_rows(self, label: int, count: int) -> Tensor | None:
        """Return the rows of a class's decoded images that take part in this iteration; None for all."""
        if count <= self.synthetic_batch:
            return None
        return torch.randperm(count, generator=self.rng("synthetic-batch", label))[: self.synthetic_batch]

    def targets(self, label: int, count: int) -> Tensor:
        """Return class numbers (count,), all ``label``."""
        return torch.full((count,), label, dtype=torch.long, device=self.synthetic.canvases.device)


class Objective(ABC):
    """A distance between the effects of synthetic and of real images on a network.

    A subclass is a frozen dataclass whose fields are its options, registered in ``OBJECTIVES``. It implements
    ``losses``; everything else has a default. It must not change the network, the real data or any global state. It is
    stateless: what it learns besides pixels is in ``state.synthetic.extras``, which checkpoints include.
    """

    # Whether ``losses`` yields one loss for each of ``state.classes``, which may be divided among ranks and threads. An
    # objective with one loss for the whole set, yielded as class -1, sets it to False: every rank then computes all.
    by_class: ClassVar[bool] = True
    # Whether it reads the real batches that a sampler chooses.
    uses_sampler: ClassVar[bool] = True
    # For errors: the setting that makes the objective use a sampler's batches if ``uses_sampler`` is False.
    sampler_option: ClassVar[str] = ""
    # Whether it learns the labels, so that none may be assigned afterwards.
    learns_labels: ClassVar[bool] = False

    def check(self, network: nn.Module, info: DatasetInfo, expert_epochs: int | None = None) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raise ValueError, before any work, for a network or data set that these options cannot be used with.

        expert_epochs: number of epochs of the experts, if known.
        """

    def open_experts(self, network: nn.Module, info: DatasetInfo) -> Experts | None:
        """Return the expert trajectories that ``losses`` follows; None for an objective without experts.

        Raise ExpertError if they are missing or of another network or data set.
        """
        return None

    def learned(self, start: SyntheticSet) -> dict[str, Tensor]:
        """Return initial values of what is learned besides pixels (a step size, label logits), by name.

        During distillation they are leaves in ``state.synthetic.extras``. They are saved with the set as
        ``extras``. ``SyntheticSet.stored_floats`` does not count them; reports add them if the protocol uses them.
        """
        return {}

    def finish(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Return the set in its final form: values that are learned in one form and used in another are converted."""
        return synthetic

    @abstractmethod
    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """Yield (class, scalar loss) over ``state.classes``; the caller back-propagates each before the next.

        So only one class's autograd graph is in memory at a time, and the caller can step after each class, as the
        released code does. With ``state.together`` it may yield (-1, losses (K,)) once instead.
        """
