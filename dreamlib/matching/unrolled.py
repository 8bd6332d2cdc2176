"""Back-propagation through training: a network trained on the distilled set should do well on real images (DD)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib._engine.compute import Compute
from dreamlib.data.types import DatasetInfo
from dreamlib.matching.inner import InnerTraining, parameters_of
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective
from dreamlib.matching.soft_labels import LOGITS, keep_learned_labels, labels_of, starting_logits
from dreamlib.settings import Natural, Positive, Rate
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation, augmentation_for

RATES = "step_sizes"
UNROLLED = "unrolled"  # key of the unrolled training in a set's metadata


def step_rows(per_class: int, num_classes: int, steps: int) -> list[Tensor]:
    """Return the rows of the decoded set for each of the ``steps`` steps of a pass; every step contains every class.

    Steps take a class's images in turn; if there are fewer images than steps, they repeat from the first.

    >>> [rows.tolist() for rows in step_rows(3, 2, 2)], [rows.tolist() for rows in step_rows(1, 2, 2)]
    ([[0, 2, 3, 5], [1, 4]], [[0, 1], [0, 1]])
    """
    rows = torch.arange(num_classes * per_class).view(num_classes, per_class)
    return [(rows[:, s::steps] if s < per_class else rows[:, [s % per_class]]).flatten() for s in range(steps)]


def batches(
    synthetic: SyntheticSet, steps: int, step_numbers: range, augmentation: Augmentation, info: DatasetInfo,
    compute: Compute, rng: torch.Generator,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Return the prepared images, with one augmentation each, and the labels of steps ``step_numbers``.

    A pass of ``steps`` steps goes once through the decoded images (see ``step_rows``).
    """
    images, hard = synthetic.decode()
    labels, shape = labels_of(synthetic, hard), tuple(images.shape[1:])
    shares = step_rows(len(images) // info.num_classes, info.num_classes, steps)
    step_batches = []
    for step in step_numbers:
        rows = shares[step % steps]
        draw, rows = augmentation.draw(len(rows), shape, rng), rows.to(images.device)
        step_batches.append((compute.cast(augmentation.apply(info.normalise(images[rows]), draw)), labels[rows]))
    return step_batches


def replay(
    network: nn.Module, synthetic: SyntheticSet, info: DatasetInfo, compute: Compute, rng: torch.Generator
) -> None:
    """Train ``network`` with the steps, rates and optimiser that ``synthetic`` was distilled through (DD's protocol).

    Raise ValueError for a set without this metadata, and for a network with running statistics, which unrolled training
    does not update.
    """
    if list(network.buffers()):
        raise ValueError(
            "protocol 'dd' replays steps that do not update running statistics, which this network has (batch norm): "
            "use a network with instance norm, or another protocol"
        )
    unrolled = synthetic.info.get(UNROLLED)
    if unrolled is None:
        raise ValueError(
            "protocol 'dd' replays the training a set was distilled through, and this set stores no such training: use "
            "another protocol, such as idc"
        )
    augmentation = augmentation_for(info, *(synthetic.info[name] for name in ("augmentation", "augmentation_mode")))
    step_numbers = range(unrolled["steps"] * unrolled["passes"])
    training = InnerTraining(network, recompute=False, optimizer=unrolled["optimizer"])
    rates = synthetic.extras.get(RATES, torch.full((len(step_numbers),), unrolled["step_size"])).to(compute.device)
    with torch.no_grad():
        steps = batches(synthetic, unrolled["steps"], step_numbers, augmentation, info, compute, rng)
        trained = training.weights(training.run(training.start(parameters_of(network)), steps, rates))
        for name, parameter in network.named_parameters():
            parameter.copy_(trained[name])


def raw_rate(rate: float) -> float:
    """Return the number whose softplus is ``rate``; rates are learned in this form, so that they stay positive.

    >>> F.softplus(torch.tensor(raw_rate(0.02))).item()
    0.0199...
    """
    return torch.tensor(rate, dtype=torch.float64).expm1().log().item()


@OBJECTIVES.register("unrolled")
@dataclass(frozen=True)
class UnrolledTraining(Objective):
    """CE of real images after training on the distilled set, differentiated through its steps (DD, Wang et al. 2018).

    DD takes a fresh network at each iteration: ``inner_iterations: 1``.

    steps: steps per pass, each on its share of the decoded images (see ``step_rows``); ``synthetic_batch`` has no
        effect.
    passes: number of passes.
    step_size: initial rate of every step; with ``learn_rates``, each step learns its own.
    optimizer: 'sgd' or 'adam'.
    learn_rates: whether the rates are learned.
    window: W of the truncated variant, which trains for a random number T of steps, W ≤ T ≤ steps · passes, and
        differentiates only through the last W (RaT-BPTT, Feng et al. 2024).
    real_batch: number of real images, of all classes, in the loss; 0 takes the sampler's batch of every class.
    augment_real: whether they are augmented, each with its own draw.
    learn_labels: whether the labels are learned too.
    recompute: bounds memory, see ``InnerTraining``.

    Raise ValueError for a window out of range.

    >>> UnrolledTraining(steps=10, passes=3).total
    30
    """

    by_class: ClassVar[bool] = False
    sampler_option: ClassVar[str] = "options.real_batch: 0"

    steps: Positive = 10
    passes: Positive = 3
    step_size: Rate = 0.02
    optimizer: Literal["sgd", "adam"] = "sgd"
    learn_rates: bool = True
    window: int | None = None
    real_batch: Natural = 1024
    augment_real: bool = False
    learn_labels: bool = False
    recompute: bool = True

    def __post_init__(self) -> None:
        if self.window is not None and not 1 <= self.window <= self.total:
            raise ValueError(
                f"options.window = {self.window} must lie between 1 and steps · passes = {self.total}; "
                "omit it to differentiate through all steps"
            )

    @property
    def total(self) -> int:
        """The number of steps of the longest unrolled training."""
        return self.steps * self.passes

    @property
    def uses_sampler(self) -> bool:
        """Whether ``real_batch`` is 0."""
        return self.real_batch == 0

    @property
    def learns_labels(self) -> bool:
        """Whether ``learn_labels`` is set."""
        return self.learn_labels

    def learned(self, start: SyntheticSet) -> dict[str, Tensor]:
        """Return 'step_sizes' (steps·passes,) before the softplus and 'label_logits' (M, K), if they are learned."""
        values = {}
        if self.learn_rates:
            values[RATES] = start.canvases.new_full((self.total,), raw_rate(self.step_size)).detach()
        if self.learn_labels:
            values[LOGITS] = starting_logits(start).detach()
        return values

    def finish(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Return the set with step sizes after the softplus, and learned labels as soft labels."""
        extras = dict(synthetic.extras)
        if self.learn_rates:
            extras[RATES] = F.softplus(extras[RATES].detach())
        unrolled = {
            "steps": self.steps,
            "passes": self.passes,
            "optimizer": self.optimizer,
            "step_size": self.step_size,
        }
        return keep_learned_labels(replace(synthetic, extras=extras, info={**synthetic.info, UNROLLED: unrolled}))

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``; one loss for all classes, given as class -1."""
        rng = state.rng("unroll")
        last, first = self.total, 0
        if self.window is not None:
            last = int(torch.randint(self.window, self.total + 1, (), generator=rng))
            first = last - self.window
        training = InnerTraining(state.network, self.recompute, self.optimizer)
        carried = training.start(parameters_of(state.network))
        rates = state.synthetic.canvases.new_full((self.total,), self.step_size)  # (steps·passes,)
        if self.learn_rates:
            rates = F.softplus(state.synthetic.extras[RATES])
        with torch.no_grad():
            carried = training.run(carried, self._batches(state, range(first), rng), rates[:first])
        carried = training.run(carried, self._batches(state, range(first, last), rng), rates[first:last])
        yield -1, training.loss(training.weights(carried), *self._real(state))

    def _batches(self, state: MatchState, step_numbers: range, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        compute = state.kernels.compute
        return batches(state.synthetic, self.steps, step_numbers, state.augmentation, state.info, compute, rng)

    def _real(self, state: MatchState) -> tuple[Tensor, Tensor]:
        data, rng = state.sampler.data, state.rng("unroll-real")
        if self.real_batch:
            rows = torch.randperm(len(data), generator=rng)[: self.real_batch].to(data.labels.device)
        else:
            rows = torch.cat([state.sampler.rows(c, state.iteration) for c in range(state.info.num_classes)])
        images = data.pixels(rows)
        if not self.augment_real:
            return state.kernels.compute.cast(state.info.normalise(images)), data.labels[rows]
        draw = state.augmentation.draw(len(rows), tuple(images.shape[1:]), rng)
        return state.prepare(images, draw), data.labels[rows]
