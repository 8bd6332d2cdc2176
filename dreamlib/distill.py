"""The distillation loop: the only code that changes pixels. IDC, DREAM and every other method run through it."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import count
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib import matching
from dreamlib._engine import ranks
from dreamlib._engine.checkpoint import Checkpoint
from dreamlib._engine.compiled_network import SHAPES, CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.cuda_graphs import CudaGraphed, on_another_stream
from dreamlib._engine.progress import progress
from dreamlib._engine.seeding import generator
from dreamlib._engine.threads import in_order, shares
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching import MatchState, Objective
from dreamlib.networks import build
from dreamlib.sampling.kmeans import lloyd_steps
from dreamlib.sampling.real_batches import SAMPLERS, EndlessPass, Sampler
from dreamlib.settings import DistillParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import embed, predict
from dreamlib.training.trainer import Trainer, TrainSettings, compiled_network

# On a GPU, where reading a loss waits for everything that was asked of it before.
LOSSES_READ_EVERY = 50


class DistillationDivergedError(RuntimeError):
    """A matching loss that is not a finite number; the last good checkpoint is kept."""


@dataclass
class DistillResult:
    """A distilled set with how it came about.

    ``history`` has one row per inner iteration: iteration, mean loss over classes. ``snapshots``: iteration → canvases.
    ``seconds`` is split by what was done, by every process that worked on the run: a resumed one goes on counting from
    its checkpoint, wherever that was made. A GPU works behind: there their sum is right, and the split says what was
    waited in. ``clock`` says how many of them had passed when each snapshot was taken.
    """

    synthetic: SyntheticSet
    history: list[tuple[int, float]]
    snapshots: dict[int, Tensor]
    seconds: dict[str, float]
    clock: dict[int, float] = field(default_factory=dict)


def effective_image_lr(settings: DistillParams, ipc: int, info: DatasetInfo) -> float:
    """The step size on pixels: as given, or base · ipc/10 · (side/32)², side/28 for MNIST (IDC, DREAM).

    >>> info = DatasetInfo("fashion_mnist", ("a", "b"), 1, 28, (0.2861,), (0.353,))
    >>> round(effective_image_lr(DistillParams(image_lr=1e-4, image_lr_rule="scaled"), 1, info), 8)
    7.66e-06
    """
    if settings.image_lr_rule == "fixed":
        return settings.image_lr
    reference = 28 if info.name == "mnist" else 32
    return settings.image_lr * ipc / 10 * (info.size / reference) ** 2


def scheduled_lr(base: float, schedule: str, iteration: int, total: int) -> float:
    """The step size on pixels, and on what else is learned, at an inner iteration of ``total``.

    'constant'; 'cosine', falling to zero at the end; 'cosine_to_tenth', to a tenth (FRePo); 'halved', by half after
    every tenth of the iterations (DD).

    >>> [round(scheduled_lr(0.1, "cosine", i, 4), 3) for i in range(4)], scheduled_lr(0.1, "constant", 3, 4)
    ([0.1, 0.085, 0.05, 0.015], 0.1)
    >>> [scheduled_lr(0.08, "halved", i, 100) for i in (0, 9, 10, 39)], scheduled_lr(1.0, "cosine_to_tenth", 0, 4)
    ([0.08, 0.08, 0.04, 0.01], 1.0)
    """
    if schedule == "constant":
        return base
    if schedule == "halved":
        return base * 0.5 ** (10 * iteration // total)
    least = 0.1 if schedule == "cosine_to_tenth" else 0.0
    return base * (least + (1 - least) * (1 + math.cos(math.pi * iteration / total)) / 2)


def snapshot_iterations(total: int, count: int) -> list[int]:
    """Where canvases are kept for accuracy curves: the start, ``count`` points doubling up to the end, the end.

    >>> snapshot_iterations(100, 3), snapshot_iterations(0, 3)
    ([0, 25, 50, 100], [0])
    """
    return sorted({0, total} | {max(1, total >> k) for k in range(count) if total})


def network_settings(settings: DistillParams, info: DatasetInfo) -> TrainSettings:
    """How a distillation trains its own networks."""
    augmentation = augmentation_for(info, settings.network_augmentation, settings.augmentation_mode)
    return TrainSettings(
        settings.network_batch,
        settings.network_lr,
        settings.network_momentum,
        settings.network_weight_decay,
        augmentation,
        settings.cutmix,
    )


def make_sampler(
    data: LabeledImages,
    settings: DistillParams,
    seed: int,
    classes: Sequence[int] | None = None,
    lloyd: CudaGraphed | None = None,
    share: tuple[int, int] = (1, 1),
) -> Sampler:
    """The sampler the settings name, for all classes or some; ``lloyd`` for one that clusters (see ``kmeans``).

    ``share``: how many classes at once and on how many CPU threads each, for one that chooses now and then.
    """
    kind = SAMPLERS[settings.sampler]
    common: dict[str, Any] = {"data": data, "batch": settings.real_batch, "seed": seed}
    options = {
        "interval": settings.interval,
        "per_cluster": settings.per_cluster,
        "pool": settings.pool,
        "max_iterations": settings.cluster_iterations,
        "start": settings.cluster_start,
        "classes": classes,
        "warm_start": settings.warm_start,
        "lloyd": lloyd,
        "parallel_classes": share[0],
        "threads": share[1],
    }
    known = {each.name for each in fields(kind)}
    return kind(**common, **{name: value for name, value in options.items() if name in known})


def side_by_side_gradients(
    objective: Objective,
    state: MatchState,
    leaves: Sequence[Tensor],
    parallel_classes: int,
    threads: int,
    beside: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Tensor, tuple[Tensor | None, ...]]]:
    """(class, loss, gradients to ``leaves``) of each of ``state.classes``, ``parallel_classes`` of them at a time.

    Each is computed on ``threads`` CPU threads and on a copy of ``state``'s network. ``beside`` is one more such piece
    of work, which may change that network. See ``dreamlib._engine.threads.in_order`` about what compiles.

    Raises RuntimeError for an objective that gives other losses than that of the class it is asked for.
    """
    spare: SimpleQueue[tuple[CompiledNetwork, nn.Module]] = SimpleQueue()
    for _ in range(parallel_classes):
        spare.put((state.kernels.thread_local(), copy.deepcopy(state.network)))

    def one(label: int) -> tuple[int, Tensor, tuple[Tensor | None, ...]]:
        own = kernels, network = spare.get()
        try:
            losses = list(objective.losses(replace(state, classes=(label,), kernels=kernels, network=network)))
        finally:
            spare.put(own)
        if [gave for gave, _ in losses] != [label]:
            raise RuntimeError(
                f"{type(objective).__name__} gave losses of classes {[gave for gave, _ in losses]} where class {label} "
                "was asked for: loop over state.classes, or set by_class = False (see Objective)"
            )
        loss = losses[0][1]
        return label, loss.detach(), torch.autograd.grad(loss.sum(), leaves, allow_unused=True)

    yield from in_order([partial(one, label) for label in state.classes], parallel_classes, threads, beside)


@dataclass
class Distiller:
    """One run: the canvases, the network of the current outer iteration, and the step that changes both.

    ``start`` is the initial set; ``data`` the real training images; ``network`` a (name, options) pair. The same
    arguments give the same bits on the same machine and thread count, interrupted or not.

    In a group of workers (``dreamlib._engine.ranks``) each matches and clusters its share of the classes and the
    pixels' gradients are summed, so that all take the same step. A class's gradient is zero outside its own canvases,
    so the sum is what one process computes, bit for bit. Every worker trains the same networks, which needs no
    exchange.

    With ``settings.parallel_classes`` classes are clustered and matched side by side on a CPU's cores. Beside the
    matching the network takes its steps on real images, as it does in a single process on a GPU where steps are
    recorded (see ``CompiledNetwork.replays``): ``seconds`` counts those as matching.
    """

    start: SyntheticSet
    data: LabeledImages
    info: DatasetInfo
    settings: DistillParams
    network: tuple[str, dict[str, Any]]
    compute: Compute
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.settings
        self.objective = matching.make(s.objective, s.options)
        self.objective.check(build(self.network[0], self.info, torch.Generator(), self.network[1]), self.info)
        every = range(self.info.num_classes)
        if ranks.world() > 1 and s.image_update == "per_class":
            raise ValueError(
                "image_update 'per_class' takes the classes in turn: with workers use batched or once_equivalent"
            )
        if ranks.world() > len(every):
            raise ValueError(f"{ranks.world()} workers share {len(every)} classes; use at most {len(every)}")
        self.classes = ranks.my_classes(len(every)) if self.objective.by_class else every
        self.synthetic = self.start.to(self.compute.device)
        self.synthetic.canvases = self.synthetic.canvases.clone().requires_grad_(True)
        learned = self.objective.learned(self.synthetic)
        self.synthetic.extras = {name: value.clone().requires_grad_(True) for name, value in learned.items()}
        self.data = self.data.to(self.compute.device)
        self._recordings: dict[str, CudaGraphed] = {}
        if self.compute.device.type == "cuda" and self.compute.compile:
            self._recordings["lloyd"] = CudaGraphed(partial(lloyd_steps, most=s.cluster_iterations))
        apart = self.objective.by_class and s.image_update != "per_class" and self.compute.device.type == "cpu"
        # Classes of many sizes have as many batch shapes, twice where clustering has its own: see
        # CompiledNetwork.thread_local.
        sizes = self.data.labels.bincount().unique()
        threads = torch.get_num_threads() if apart and len(sizes) <= SHAPES // 2 else 1
        # By the smallest share of the classes among workers: all must train on as many threads, for the same bits.
        fewest = len(every) // (ranks.world() if self.objective.by_class else 1)
        self._at_once, self._threads_of_each = share = next(shares(fewest, threads, s.parallel_classes))
        self.sampler = make_sampler(self.data, s, self.seed, self.classes, self._recordings.get("lloyd"), share)
        self.augmentation = augmentation_for(self.info, s.augmentation, s.augmentation_mode)
        self.lr = effective_image_lr(s, self.synthetic.ipc, self.info)
        self.optimizer = self._image_optimizer()
        self._first_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.total = s.outer_iterations * s.inner_iterations
        self.kernels: CompiledNetwork | None = None  # made with the first network, kept for all
        self._copied: nn.Module | None = None  # the network, for matching beside its training on a GPU
        self._compiled_kinds: set[str] = set()  # of what runs side by side: it may do so from the second time on
        self.iteration = 0
        self.history: list[tuple[int, float]] = []
        self._unread: list[tuple[int, list[int], list[Tensor]]] = []
        self.snapshots: dict[int, Tensor] = {}
        self.clock: dict[int, float] = {}
        self._keep = snapshot_iterations(self.total, s.snapshots)

    @property
    def _bounded(self) -> bool:
        """Whether canvases hold pixels, of images that lie in [0, 1]."""
        return self.info.bounded and self.synthetic.frequencies is None

    @property
    def _ahead(self) -> bool:
        """Whether iterations are asked of the device without waiting for their losses."""
        return self.compute.device.type == "cuda" and ranks.world() == 1

    @property
    def _replays(self) -> bool:
        """Whether iterations are recorded CUDA graphs, asked for ahead."""
        return self._ahead and self.kernels is not None and self.kernels.replays

    def _image_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        groups = [{"params": [self.synthetic.canvases], "lr": self.lr}]
        if self.synthetic.extras:
            groups.append({"params": list(self.synthetic.extras.values()), "lr": s.learned_lr})
        if s.image_optimizer == "adam":
            return torch.optim.Adam(groups, betas=(0.5, 0.999))
        if s.image_update == "once_equivalent":
            # The released code steps one shared momentum buffer once a class, so that a class's gradient g goes on
            # moving it while the others take their turn: lr·g/(1 − momentum) in all. One plain step does it to 2^-K.
            groups[0]["lr"] = self.lr / (1 - s.image_momentum)
            return torch.optim.SGD(groups)
        return torch.optim.SGD(groups, momentum=s.image_momentum)

    def run(self, checkpoint: Checkpoint | None = None, label: str = "distil") -> DistillResult:
        """All iterations, from the checkpoint where there is one; a progress bar shows rate, loss and time left.

        Raises DistillationDivergedError naming iteration, class and step size when a loss is not finite.
        """
        saved = checkpoint.load() if checkpoint else None
        if saved:
            self.load_state(saved)
        # Also the moment all wait for: no worker goes on to change or delete the file before all have read it.
        if len(set(begun := ranks.gather([self.iteration]))) > 1:
            raise RuntimeError(f"workers read different checkpoints, of iterations {begun}: delete {checkpoint.path}")
        self._snapshot()
        last = time.monotonic()
        with progress(self.total, label, initial=self.iteration) as bar:
            if self.compute.compile:
                bar.set_postfix_str("the first steps may compile, which takes longer")
            while self.iteration < self.total:
                self.step()
                if self.history:
                    bar.set_postfix(loss=f"{self.history[-1][1]:.4g}", refresh=False)
                bar.update()
                due = time.monotonic() - last > self.settings.checkpoint_every_s
                if checkpoint and ranks.as_the_first(due):
                    state = self.state()
                    if ranks.first():
                        checkpoint.save(state)
                    last = time.monotonic()
        self._catch_up()
        for recording in self._recordings.values():
            recording.forget()
        self.synthetic.canvases = self.synthetic.canvases.detach()
        self.synthetic.extras = {name: value.detach() for name, value in self.synthetic.extras.items()}
        finished = self.objective.finish(self.synthetic).to("cpu")
        return DistillResult(finished, self.history, self.snapshots, self.seconds, self.clock)

    def step(self) -> None:
        """One inner iteration: match every class once, train the network after it, or beside it, to the same effect.

        It begins and ends outer iterations.
        """
        s = self.settings
        if self.iteration % s.inner_iterations == 0:
            self._timed("network", self._begin_outer)
        age = self.iteration % s.inner_iterations
        self._timed("clustering", lambda: self.sampler.prepare(self.iteration, self._embed, self._predict, age))
        if s.image_lr_schedule != "constant":
            for group, first in zip(self.optimizer.param_groups, self._first_lrs, strict=True):
                group["lr"] = scheduled_lr(first, s.image_lr_schedule, self.iteration, self.total)
        last = self.iteration % s.inner_iterations == s.inner_iterations - 1  # its network is thrown away
        train = None if last or not s.network_steps else partial(self._train, s.network_steps)
        side_by_side = self._at_once > 1 or self._replays
        if side_by_side and s.train_on == "real":  # the steps depend on no pixel that matching changes
            self._timed("matching", partial(self._match, train))
        else:
            self._timed("matching", self._match)
            if train:
                self._timed("network", train)
        self.iteration += 1
        if self.iteration % s.inner_iterations == 0 and self._bounded:
            self._catch_up()  # an infinite pixel is to be seen before it is clamped
            with torch.no_grad():
                self.synthetic.canvases.clamp_(0, 1)
        self._snapshot()

    def _timed(self, what: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    def _embed(self, images: Tensor) -> Tensor:
        how = self.settings.cluster_features
        if how == "pixels":
            return images.flatten(1)
        model = self._untrained if how == "random" else self.model
        info = self.info if self.sampler.normalised_features else self.info.unbounded()
        return embed(model, images, info, self._kernels_of_a_thread(), spatial_mean=how == "spatial_mean")

    @cached_property
    def _untrained(self) -> nn.Module:
        name, options = self.network
        return self.compute.place(build(name, self.info, generator(self.seed, "cluster-network"), options))

    def _predict(self, images: Tensor) -> Tensor:
        return predict(self.model, images, self.info, self._kernels_of_a_thread())

    def _kernels_of_a_thread(self) -> CompiledNetwork:
        """For a call that may be one of several threads': with a template of its own where nothing is compiled."""
        return self.kernels.thread_local() if self._at_once > 1 else self.kernels

    def _begin_outer(self) -> None:
        self._fresh_network()
        self.sampler.new_network()
        if self.settings.pretrain_epochs:
            outer, size = self.iteration // self.settings.inner_iterations, self.settings.network_batch
            order = EndlessPass(len(self.data), size, self.seed, "pretrain-order", outer)
            self._train(max(1, round(self.settings.pretrain_epochs * order.batches)), "pretrain", order)

    def _fresh_network(self) -> None:
        s, (name, options) = self.settings, self.network
        outer = self.iteration // s.inner_iterations
        self.model = self.compute.place(build(name, self.info, generator(self.seed, "network", outer), options))
        if self.kernels is None:
            self.kernels = compiled_network(self.network, self.info, self.compute)
        self.trainer = Trainer(self.model, self.info, network_settings(s, self.info), self.kernels)

    def _train(self, steps: int, purpose: str = "train", order: EndlessPass | None = None) -> None:
        """``steps`` steps of the network, on the distilled set or along an ``order`` of the real images.

        By default that is the run's endless pass, in which each inner iteration has its place.
        """
        if self.settings.train_on == "none" or steps == 0:
            return
        rng, following = generator(self.seed, purpose, self.iteration), count(0 if order else self.iteration * steps)
        if self.settings.train_on == "synthetic":
            with torch.no_grad():
                images, labels = self.synthetic.decode()
            size = min(self.settings.network_batch, len(labels))
            self.trainer.train(images, labels, lambda: torch.randperm(len(labels), generator=rng)[:size], steps, rng)
        else:
            order = order or self._order
            self.trainer.train(self.data.images, self.data.labels, lambda: order.at(next(following)), steps, rng)

    @cached_property
    def _order(self) -> EndlessPass:
        """The order in which the networks see the real images."""
        return EndlessPass(len(self.data), self.settings.network_batch, self.seed, "network-order")

    def _match(self, train: Callable[[], None] | None = None) -> None:
        """A step on the pixels, and beside it what trains the network, on another stream or on other threads."""
        if train and self._replays:
            with torch.no_grad():
                self._copied = self._copied or copy.deepcopy(self.model)
                torch._foreach_copy_(list(self._copied.parameters()), list(self.model.parameters()))
            with on_another_stream(self.compute.device) as other:
                self._match_by(self._copied)
                with other:
                    train()
        else:
            self._match_by(self.model, train)

    def _match_by(self, network: nn.Module, beside: Callable[[], None] | None = None) -> None:
        state = MatchState(
            self.synthetic, network, self.kernels, self.sampler, self.info, self.augmentation,
            self.seed, self.iteration, self.settings.synthetic_batch, self.classes,
            together=self._replays and self.settings.image_update != "per_class",
            recordings=self._recordings,
        )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        labels, losses = [], []
        for label, loss in self._side_by_side(state, beside) if self._at_once > 1 else self._one_by_one(state):
            labels.append(label)
            losses.append(loss)
            if self.settings.image_update == "per_class":
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=False)
        if self.objective.by_class and ranks.world() > 1:
            labels, losses = self._summed(labels, losses)
        if self.settings.image_update != "per_class":
            self.optimizer.step()
        self._unread.append((self.iteration, labels, losses))
        if not self._ahead or len(self._unread) >= LOSSES_READ_EVERY:
            self._read_losses()

    def _one_by_one(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """(class, loss) of what the objective yields, each back-propagated."""
        for label, loss in self.objective.losses(state):
            if not self._ahead:
                self._refuse_broken_loss(self.iteration, label, float(loss.detach()))
            loss.sum().backward(inputs=self._leaves)
            yield label, loss.detach()

    def _side_by_side(self, state: MatchState, beside: Callable[[], None] | None) -> Iterator[tuple[int, Tensor]]:
        """The same of several classes at once."""
        kinds = {"matching", "training"} if beside else {"matching"}
        parallel_classes = self._at_once if kinds <= self._compiled_kinds else 1
        self._compiled_kinds |= kinds
        how = parallel_classes, self._threads_of_each, beside
        with closing(side_by_side_gradients(self.objective, state, self._leaves, *how)) as found:
            for label, loss, gradients in found:
                self._refuse_broken_loss(self.iteration, label, float(loss))
                for leaf, gradient in zip(self._leaves, gradients, strict=True):
                    if gradient is not None:
                        leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad.add_(gradient)
                yield label, loss

    @property
    def _leaves(self) -> list[Tensor]:
        """What is learned."""
        return [self.synthetic.canvases, *self.synthetic.extras.values()]

    def _catch_up(self) -> None:
        """Wait for the iterations asked for, and read their losses."""
        if self._unread:
            self._timed("matching", self._read_losses)

    def _read_losses(self) -> None:
        """Bring the history up to date; raises DistillationDivergedError where a loss or a value is not finite."""
        for iteration, labels, losses in self._unread:
            values = [value for loss in losses for value in loss.reshape(-1).tolist()]
            if len(values) > len(labels):
                labels = list(self.classes)
            for label, value in zip(labels, values, strict=True):
                self._refuse_broken_loss(iteration, label, value)
            self.history.append((iteration, sum(values) / len(values)))
        latest, self._unread = self._unread[-1][0], []
        self._refuse_broken_pixels(latest)

    def _refuse_broken_loss(self, iteration: int, label: int, loss: float) -> None:
        if not math.isfinite(loss):
            of = f"class {label} ({self.info.classes[label]})" if label >= 0 else "all classes"
            raise DistillationDivergedError(
                f"the matching loss of {of} is {loss} at inner "
                f"iteration {iteration}, with image_lr {self.lr:g}: lower image_lr and run again"
            )

    def _summed(self, labels: list[int], losses: list[Tensor]) -> tuple[list[int], list[Tensor]]:
        """All workers' classes' gradients, on every worker's leaves; all classes, and their losses."""
        if labels != list(self.classes):
            raise RuntimeError(
                f"objective '{self.settings.objective}' gave losses of classes {labels} where a worker was to do "
                f"{list(self.classes)}: loop over state.classes, or set by_class = False (see Objective)"
            )
        for leaf in self._leaves:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        whole = torch.zeros(self.info.num_classes, dtype=torch.float64, device=self.compute.device)
        whole[list(self.classes)] = torch.stack(losses).double()
        ranks.sum_over_workers([*(leaf.grad for leaf in self._leaves if leaf.grad is not None), whole])
        return list(range(self.info.num_classes)), list(whole)

    def _centers(self) -> list[Tensor | None] | None:
        """Each class's cluster centres where the sampler keeps them, for a checkpoint."""
        if not self.settings.warm_start:
            return None
        kept = getattr(self.sampler, "centers", {})
        return self._of_all_classes([kept.get(c) for c in range(self.info.num_classes)])

    def _of_all_classes(self, kept: list[Tensor | None] | None) -> list[Tensor | None] | None:
        """What a sampler keeps of each class, from whichever worker has it."""
        if kept is None or len(self.classes) == len(kept):
            return kept
        return ranks.gather([None if (row := kept[c]) is None else row.cpu() for c in self.classes])

    def _refuse_broken_pixels(self, iteration: int) -> None:
        # A finite loss may have a gradient that is not: stop before such pixels reach a checkpoint.
        for name, value in self.synthetic.extras.items():
            if not bool(value.isfinite().all()):
                raise DistillationDivergedError(
                    f"the step at inner iteration {iteration} left values of the learned '{name}' that are not finite, "
                    f"with learned_lr {self.settings.learned_lr:g}: lower learned_lr and run again"
                )
        canvases = self.synthetic.canvases
        if not bool(canvases.isfinite().all()):
            where = int((~canvases.isfinite()).flatten().nonzero()[0]) * self.info.num_classes // canvases.numel()
            raise DistillationDivergedError(
                f"the step at inner iteration {iteration} left values that are not finite, first in class "
                f"{where} ({self.info.classes[where]}), with image_lr {self.lr:g}: lower image_lr and run again"
            )

    def _snapshot(self) -> None:
        if self.iteration in self._keep:
            self._catch_up()
            canvases = self.synthetic.canvases.detach()
            self.snapshots[self.iteration] = (canvases.clamp(0, 1) if self._bounded else canvases.clone()).cpu()
            self.clock[self.iteration] = sum(self.seconds.values())

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, called by all workers; generators are not in it: each iteration makes its own."""
        self._catch_up()
        return {
            "iteration": self.iteration,
            "canvases": self.synthetic.canvases.detach(),
            "extras": {name: value.detach() for name, value in self.synthetic.extras.items()},
            "image_optimizer": self.optimizer.state_dict(),
            "network": self.model.state_dict(),
            "network_optimizer": self.trainer.optimizer.state_dict(),
            "chosen": self._of_all_classes(self.sampler.chosen),
            "centers": self._centers(),
            "history": self.history,
            "snapshots": self.snapshots,
            "seconds": self.seconds,
            "clock": self.clock,
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Continue from ``state()``."""
        self.iteration = saved["iteration"]
        with torch.no_grad():
            self.synthetic.canvases.copy_(saved["canvases"])
            for name, value in saved["extras"].items():
                self.synthetic.extras[name].copy_(value)
        self.optimizer.load_state_dict(saved["image_optimizer"])
        self._fresh_network()
        self.model.load_state_dict(saved["network"])
        self.trainer.optimizer.load_state_dict(saved["network_optimizer"])
        chosen = saved["chosen"]
        self.sampler.chosen = None if chosen is None else [rows.to(self.compute.device) for rows in chosen]
        if saved["centers"] is not None:
            kept = {c: x.to(self.compute.device) for c, x in enumerate(saved["centers"]) if x is not None}
            self.sampler.centers = {c: x for c, x in kept.items() if c in self.classes}
        self.history = [tuple(row) for row in saved["history"]]
        self.snapshots = dict(saved["snapshots"])
        self.seconds = dict(saved["seconds"])
        self.clock = dict(saved["clock"])
