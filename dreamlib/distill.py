"""The distillation loop: the only code that changes pixels. IDC, DREAM and every other method run through it.

Each outer iteration takes a fresh network. Each inner iteration lets the sampler choose real images, matches every
class on them, steps the pixels and trains the network a little. An objective (``dreamlib.matching``) defines the loss,
a sampler (``dreamlib.sampling``) the real images, and a strategy (``dreamlib._engine.strategies``) where and in which
order classes are matched.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib import matching
from dreamlib._engine import ranks
from dreamlib._engine.checkpoint import Checkpoint
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.losses import LossHistory
from dreamlib._engine.progress import progress
from dreamlib._engine.strategies import MatchingStep, Strategy, choose_strategy
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import DistillParams
from dreamlib.synthetic.learned_set import LearnedSet
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.matched_network import MatchedNetwork
from dreamlib.training.trainer import compiled_network


@dataclass
class DistillResult:
    """A distilled set and the record of its run.

    synthetic: the distilled set, on the CPU.
    history: a row (iteration, mean loss over classes) per inner iteration.
    snapshots: iteration → canvases.
    seconds: time by kind of work, including that before a resume. On a GPU only the total is meaningful.
    clock: iteration → total seconds when its snapshot was taken.
    """

    synthetic: SyntheticSet
    history: list[tuple[int, float]]
    snapshots: dict[int, Tensor]
    seconds: dict[str, float]
    clock: dict[int, float] = field(default_factory=dict)


def snapshot_iterations(total: int, count: int) -> list[int]:
    """Return the iterations of the snapshots: 0, and ``count`` points that double up to the last; at least the last.

    >>> snapshot_iterations(100, 3), snapshot_iterations(0, 3)
    ([0, 25, 50, 100], [0])
    """
    return sorted({0, total} | {max(1, total >> k) for k in range(count) if total})


@dataclass
class Distiller:
    """One run of the loop; ``Distiller(...).run()`` returns a ``DistillResult``.

    start: the initial set; it is not changed.
    data: the real training images.
    network: (name, options) of the architecture that images are matched on.
    seed: source of randomness; the same arguments, machine and thread count give the same bits, interrupted or not.
    seconds: time by kind of work; training at the same time as matching counts as matching.
    strategy: how matching is executed; by default what suits the machine (``choose_strategy``).
    """

    start: SyntheticSet
    data: LabeledImages
    info: DatasetInfo
    settings: DistillParams
    network: tuple[str, dict[str, Any]]
    compute: Compute
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    strategy: Strategy | None = None

    def __post_init__(self) -> None:
        settings, info = self.settings, self.info
        self.objective = matching.make(settings.objective, settings.options)
        self.objective.check(build(self.network[0], info, torch.Generator(), self.network[1]), info)
        self.data = self.data.to(self.compute.device)
        self.kernels = compiled_network(self.network, info, self.compute)
        self.strategy = self.strategy or choose_strategy(
            self.kernels,
            self.data.labels.bincount(minlength=info.num_classes),
            by_class=self.objective.by_class,
            in_turn=settings.image_update == "per_class",
            parallel_classes=settings.parallel_classes,
        )
        self.matched = MatchedNetwork(self.network, self.data, info, settings, self.seed, self.strategy)
        self.sampler = SAMPLERS[settings.sampler].from_settings(self.data, settings, self.seed, self.strategy)
        self.augmentation = augmentation_for(info, settings.augmentation, settings.augmentation_mode)
        self.learned = LearnedSet(self.start.to(self.compute.device), self.objective.learned, settings, info)
        self.synthetic = self.learned.synthetic
        self.iteration = 0  # inner iterations done
        self.total = settings.outer_iterations * settings.inner_iterations
        self.losses = LossHistory(info.classes, self.learned.lr, self.strategy.losses_read_every)
        self.snapshots: dict[int, Tensor] = {}
        self.clock: dict[int, float] = {}

    def run(self, checkpoint: Checkpoint | None = None, label: str = "distil") -> DistillResult:
        """Run all iterations, from the checkpoint if there is one, with a progress bar.

        Raise DistillationDivergedError, naming iteration, class and step size, if a loss is not finite.
        """
        saved = checkpoint.load() if checkpoint else None
        if saved:
            self.load_state(saved)
        # Also a barrier: no rank continues to change or delete the file before all have read it.
        if len(set(started := ranks.gather([self.iteration]))) > 1:
            raise RuntimeError(f"workers read different checkpoints, of iterations {started}: delete {checkpoint.path}")
        self._snapshot()
        last_saved = time.monotonic()
        with progress(self.total, label, initial=self.iteration) as bar:
            if self.compute.compile:
                bar.set_postfix_str("the first steps may compile, which takes longer")
            while self.iteration < self.total:
                self.step()
                if self.history:
                    bar.set_postfix(loss=f"{self.history[-1][1]:.4g}", refresh=False)
                bar.update()
                due = time.monotonic() - last_saved > self.settings.checkpoint_every_s
                if checkpoint and ranks.broadcast_from_first(due):
                    state = self.state()
                    if ranks.first():
                        checkpoint.save(state)
                    last_saved = time.monotonic()
        self._catch_up()
        self.strategy.release()
        finished = self.objective.finish(self.learned.detach()).to("cpu")
        return DistillResult(finished, self.history, self.snapshots, self.seconds, self.clock)

    def step(self) -> None:
        """Run one inner iteration, including what starts or ends an outer iteration."""
        settings = self.settings
        age = self.iteration % settings.inner_iterations  # of the network, in inner iterations
        if age == 0:
            self._timed("network", self._new_network)
        self._timed("clustering", partial(self._choose_real_images, age))
        self.learned.set_learning_rates(self.iteration, self.total)

        last = age == settings.inner_iterations - 1  # a new network follows, so this one needs no more training
        trains = settings.train_on != "none" and settings.network_steps and not last
        train = partial(self.matched.train, self.iteration, self.synthetic.decode) if trains else None
        # Training on real images does not depend on the pixels that matching changes.
        if self.strategy.overlaps_training and settings.train_on == "real":
            self._timed("matching", partial(self._match, train))
        else:
            self._timed("matching", self._match)
            if train:
                self._timed("network", train)
        if self.losses.due:
            self._catch_up()
        self.iteration += 1
        if last and self.learned.bounded:
            self._catch_up()  # so that an infinite pixel is seen before it is clamped
            self.learned.clamp()
        self._snapshot()

    def _new_network(self) -> None:
        outer = self.iteration // self.settings.inner_iterations
        self.matched.renew(outer)
        self.matched.pretrain(outer, self.iteration)

    def _choose_real_images(self, age: int) -> None:
        features = partial(self.matched.features, normalised=self.sampler.normalised_features)
        self.sampler.prepare(self.iteration, features, self.matched.predictions, age)

    def _match(self, train: Callable[[], None] | None = None) -> None:
        """Match every class and step the pixels; ``train`` is the network's training, to do at the same time."""
        in_turn, optimizer = self.settings.image_update == "per_class", self.learned.optimizer
        step = MatchingStep(self.settings.objective, self._class_losses, self.matched.model, self.learned.leaves)
        optimizer.zero_grad(set_to_none=True)
        with closing(self.strategy.match(step, train)) as losses:
            for label, loss in losses:
                self.losses.add(self.iteration, label, loss)
                if in_turn:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=False)
        if not in_turn:
            optimizer.step()

    def _class_losses(
        self, classes: Sequence[int], network: nn.Module, kernels: CompiledNetwork
    ) -> Iterator[tuple[int, Tensor]]:
        """Return the objective's (class, loss) pairs, to be back-propagated one after the other."""
        together = self.strategy.one_graph and self.settings.image_update != "per_class"
        state = matching.MatchState(
            self.synthetic, network, kernels, self.sampler, self.info, self.augmentation, self.seed, self.iteration,
            self.settings.synthetic_batch, classes, together, self.strategy.graphs,
        )  # fmt: skip
        return self.objective.losses(state)

    @property
    def history(self) -> list[tuple[int, float]]:
        """(iteration, mean loss over classes) of the iterations whose losses have been read."""
        return self.losses.rows

    def _catch_up(self) -> None:
        """Wait for iterations that a GPU still works on, and read their losses."""
        if self.losses.unread:
            self._timed("matching", self.losses.read)
            self.learned.check_finite(self.history[-1][0])

    def _snapshot(self) -> None:
        if self.iteration in snapshot_iterations(self.total, self.settings.snapshots):
            self._catch_up()
            self.snapshots[self.iteration] = self.learned.snapshot()
            self.clock[self.iteration] = sum(self.seconds.values())

    def _timed(self, work: str, function: Callable[[], None]) -> None:
        started = time.perf_counter()
        function()
        self.seconds[work] = self.seconds.get(work, 0.0) + time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs (collective); random generators are created anew in each iteration."""
        self._catch_up()
        return {
            "iteration": self.iteration,
            **self.learned.state(),
            "network": self.matched.state(),
            "sampler": self.strategy.gather_classes(self.sampler.state()),
            "history": self.history,
            "snapshots": self.snapshots,
            "seconds": self.seconds,
            "clock": self.clock,
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Continue from ``state()``."""
        self.iteration = saved["iteration"]
        self.learned.load_state(saved)
        self.matched.load_state(self.iteration // self.settings.inner_iterations, saved["network"])
        self.sampler.load_state(saved["sampler"])
        self.losses.rows[:] = [tuple(row) for row in saved["history"]]
        self.snapshots = dict(saved["snapshots"])
        self.seconds = dict(saved["seconds"])
        self.clock = dict(saved["clock"])
