"""Which real images supervise a matching step: the contract of a sampler, and random batches (IDC)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import generator
from dreamlib._engine.strategies import Strategy
from dreamlib._engine.threads import Workers
from dreamlib.data.types import LabeledImages
from dreamlib.settings import DistillParams

SAMPLERS: Registry[type["Sampler"]] = Registry("sampler")
Embed = Callable[[Tensor], Tensor]  # images (n, C, H, W) in [0, 1] → features (n, D)
Predict = Callable[[Tensor], Tensor]  # images (n, C, H, W) in [0, 1] → logits (n, K)


class EndlessPass:
    """Batches of endless passes over ``count`` rows in random order, without replacement within a pass.

    The order of each pass is drawn from (seed, purpose, pass), so the batch of any step can be computed directly. An
    incomplete last batch of a pass is dropped; if ``batch`` exceeds ``count``, a batch is all rows.

    >>> rows = EndlessPass(5, 2, 0, "example")
    >>> rows.batches, len(torch.cat([rows.at(0), rows.at(1)]).unique())
    (2, 4)
    """

    def __init__(self, count: int, batch: int, seed: int, *purpose: str | int) -> None:
        self.count, self.batch, self.seed, self.purpose = count, min(batch, count), seed, purpose
        self._order: tuple[int, Tensor] | None = None

    @property
    def batches(self) -> int:
        """The number of batches in one pass."""
        return self.count // self.batch

    def at(self, step: int) -> Tensor:
        """Return the rows (batch,) of batch number ``step``, counted from the first pass, on the CPU."""
        number, place = divmod(step, self.batches)
        if self._order is None or self._order[0] != number:
            rng = generator(self.seed, *self.purpose, number)
            self._order = number, torch.randperm(self.count, generator=rng)
        return self._order[1][place * self.batch : (place + 1) * self.batch]


def class_pool(data: LabeledImages, label: int, pool: int, rng: torch.Generator) -> Tensor:
    """Return all rows of a class if ``pool`` is 0, else at most ``pool`` random ones."""
    return random_subset(data.of_class(label), pool, rng)


def random_subset(members: Tensor, pool: int, rng: torch.Generator) -> Tensor:
    """Return ``pool`` random rows of ``members`` (n,), or all rows if ``pool`` is 0 or at least n."""
    if pool and pool < len(members):
        members = members[torch.randperm(len(members), generator=rng)[:pool].to(members.device, non_blocking=True)]
    return members


@dataclass
class Sampler(ABC):
    """A rule that chooses each class's batch of real images at every inner iteration.

    A subclass is a dataclass registered in ``SAMPLERS``. It implements ``rows``; every other method has a default that
    suits a stateless sampler. Random draws come from a generator created from (seed, iteration), and ``state`` holds
    everything else, so that a resumed run continues exactly where it stopped.

    data: the real training images.
    batch: images per class; all of a class with fewer.
    """

    # Whether ``prepare`` is given features of normalised images.
    normalised_features: ClassVar[bool] = True

    data: LabeledImages
    batch: int
    seed: int

    def __post_init__(self) -> None:
        self.members = [self.data.of_class(c) for c in range(self.data.num_classes)]
        empty = [c for c, rows in enumerate(self.members) if not len(rows)]
        if empty:
            raise ValueError(f"classes {empty} have no training image; every class needs at least one")

    @classmethod
    def from_settings(cls, data: LabeledImages, settings: DistillParams, seed: int, strategy: Strategy) -> "Sampler":
        """Return the sampler of a run; fields named like a setting take its value."""
        named = settings.model_dump(include={field.name for field in fields(cls)})
        return cls(data=data, batch=settings.real_batch, seed=seed, **named, **cls.execution(strategy))

    @classmethod
    def execution(cls, strategy: Strategy) -> dict[str, Any]:
        """Return the arguments that come from the strategy: the classes of this process, its threads, CUDA graphs."""
        return {}

    def prepare(  # noqa: B027 (a stateless sampler has nothing to do)
        self, iteration: int, embed: Embed, predict: Predict | None = None, age: int | None = None
    ) -> None:
        """Get ready for an inner iteration.

        embed: the feature map to choose by.
        predict: the current network's logits.
        age: inner iterations since the current network was created; by default ``iteration``.
        """

    def state(self) -> dict[str, dict[int, Tensor]]:
        """Return what a checkpoint must hold: tensors by name and class, of the classes this process works on."""
        return {}

    def load_state(self, saved: dict[str, dict[int, Tensor]]) -> None:  # noqa: B027 (as above)
        """Continue from ``state()``; ``saved`` holds all classes, on the CPU."""

    @abstractmethod
    def rows(self, label: int, iteration: int) -> Tensor:
        """Return the rows (≤ batch,) of ``data`` that supervise a class; no row twice, except for 'released'."""


@SAMPLERS.register("random")
@dataclass
class RandomSampler(Sampler):
    """An endless pass over each class in random order, a batch at every iteration (IDC)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._passes = [
            EndlessPass(len(rows), self.batch, self.seed, "real-batch", label)
            for label, rows in enumerate(self.members)
        ]

    def rows(self, label: int, iteration: int) -> Tensor:
        """See ``Sampler.rows``."""
        members = self.members[label]
        return members[self._passes[label].at(iteration).to(members.device, non_blocking=True)]


@dataclass
class IntervalSampler(Sampler):
    """A sampler that chooses for each new network and every ``interval`` iterations, and reuses its choice in between.

    pool: maximum number of random images per class to choose from (0: all, as in DREAM's released code).
    classes: the classes to choose for; None for all.
    workers: on a CPU, number of classes processed at a time, which bounds the features in memory; ``embed`` and
        ``predict`` must then be thread-safe.
    chosen: class → rows of ``data``.
    """

    interval: int = 10
    pool: int = 0
    classes: Sequence[int] | None = None
    workers: Workers = field(default_factory=Workers)
    chosen: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes = range(self.data.num_classes) if self.classes is None else self.classes

    @classmethod
    def execution(cls, strategy: Strategy) -> dict[str, Any]:
        """See ``Sampler.execution``."""
        return super().execution(strategy) | {"classes": strategy.classes, "workers": strategy.workers}

    @abstractmethod
    def choose(self, label: int, members: Tensor, rng: torch.Generator, embed: Embed, predict: Predict) -> Tensor:
        """Return the rows (≤ batch,) chosen among ``members`` (n,), rows of the class."""

    def prepare(self, iteration: int, embed: Embed, predict: Predict | None = None, age: int | None = None) -> None:
        """Choose anew if nothing is chosen yet, the network is new or the interval has passed."""
        if self.chosen and (iteration if age is None else age) % self.interval:
            return
        rngs = {label: generator(self.seed, "cluster", label, iteration) for label in self.classes}
        members = {label: random_subset(self.members[label], self.pool, rng) for label, rng in rngs.items()}
        self.chosen = self.choose_all(members, rngs, embed, predict or _no_predictions)

    def choose_all(
        self, members: dict[int, Tensor], rngs: dict[int, torch.Generator], embed: Embed, predict: Predict
    ) -> dict[int, Tensor]:
        """Return the result of ``choose`` for every class."""
        tasks = [partial(self.choose, label, rows, rngs[label], embed, predict) for label, rows in members.items()]
        if self.workers.parallel == 1:
            return {label: task() for label, task in zip(members, tasks, strict=True)}
        return dict(zip(members, self.workers.in_order({"choosing"}, tasks), strict=True))

    def rows(self, label: int, iteration: int) -> Tensor:
        """See ``Sampler.rows``."""
        if label not in self.chosen:
            raise RuntimeError("prepare() must run before rows() and include this class")
        return self.chosen[label]

    def state(self) -> dict[str, dict[int, Tensor]]:
        """See ``Sampler.state``."""
        return super().state() | {"chosen": self.chosen}

    def load_state(self, saved: dict[str, dict[int, Tensor]]) -> None:
        """See ``Sampler.load_state``."""
        super().load_state(saved)
        chosen, device = saved["chosen"], self.data.labels.device
        self.chosen = {label: chosen[label].to(device) for label in self.classes if label in chosen}


def _no_predictions(images: Tensor) -> Tensor:
    raise ValueError("this sampler needs the network's predictions; pass a predict function to prepare()")
