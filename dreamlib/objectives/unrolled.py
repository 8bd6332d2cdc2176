"""Back-propagation through training: a network trained on the distilled set should do well on real images (DD)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib.objectives.base import OBJECTIVES, MatchState, Objective
from dreamlib.objectives.inner import InnerSGD, parameters_of
from dreamlib.objectives.soft_labels import LOGITS, check_confidence, keep_learned_labels, labels_of, starting_logits
from dreamlib.synthetic import SyntheticSet
from dreamlib.types import DatasetInfo

RATES = "step_sizes"


def parts(per_class: int, num_classes: int, steps: int) -> list[Tensor]:
    """Rows of the decoded set that each of a pass's ``steps`` steps trains on: every class in every step.

    A class's images are dealt out in turn; one with fewer images than steps begins again with its first.

    >>> [rows.tolist() for rows in parts(3, 2, 2)], [rows.tolist() for rows in parts(1, 2, 2)]
    ([[0, 2, 3, 5], [1, 4]], [[0, 1], [0, 1]])
    """
    rows = torch.arange(num_classes * per_class).view(num_classes, per_class)
    return [(rows[:, s::steps] if s < per_class else rows[:, [s % per_class]]).flatten() for s in range(steps)]


def raw_rate(rate: float) -> float:
    """The number whose softplus is ``rate``: rates are learned in this form, so that they stay positive.

    >>> F.softplus(torch.tensor(raw_rate(0.02))).item()
    0.0199...
    """
    return torch.tensor(rate, dtype=torch.float64).expm1().log().item()


@OBJECTIVES.register("unrolled")
@dataclass(frozen=True)
class UnrolledTraining(Objective):
    """CE of real images after SGD on the distilled set, differentiated through every step (DD, Wang et al. 2018).

    One pass is ``steps`` steps that share the decoded images out (see ``parts``; ``synthetic_batch`` plays no role);
    there are ``passes``. Every step has a learned rate, ``step_size`` at first. ``window`` W is the truncated variant:
    train for a random number T of steps, W ≤ T ≤ steps · passes, and differentiate through the last W only (RaT-BPTT,
    Feng et al. 2024). ``real_batch`` images of all classes measure the result, without augmentation; 0 takes the
    sampler's batch of every class. ``learn_labels`` learns the labels too, from ``label_confidence`` in the class.
    ``recompute`` bounds memory (see ``InnerSGD``). DD takes a fresh network at each iteration: ``inner_iterations: 1``.

    Raises ValueError, naming the option, for a value out of range.

    >>> UnrolledTraining(steps=10, passes=3).total
    30
    """

    by_class: ClassVar[bool] = False

    steps: int = 10
    passes: int = 3
    step_size: float = 0.02
    window: int | None = None
    real_batch: int = 1024
    learn_labels: bool = False
    label_confidence: float = 0.9
    recompute: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("passes", 1), ("real_batch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"options.{name} = {getattr(self, name)} must be at least {least}")
        if not self.step_size > 0:
            raise ValueError(f"options.step_size = {self.step_size} must be above 0, for example 0.02")
        if self.window is not None and not 1 <= self.window <= self.total:
            raise ValueError(
                f"options.window = {self.window} must lie between 1 and steps · passes = {self.total}; "
                "leave it out to differentiate through all"
            )

    @property
    def total(self) -> int:
        """Steps of the longest unrolled training."""
        return self.steps * self.passes

    @property
    def uses_sampler(self) -> bool:
        """Only where ``real_batch`` is 0."""
        return self.real_batch == 0

    def check(self, network: nn.Module, info: DatasetInfo, expert_epochs: int | None = None) -> None:
        """See ``Objective.check`` and ``check_confidence``."""
        if self.learn_labels:
            check_confidence(self.label_confidence, info.num_classes)

    def learned(self, start: SyntheticSet) -> dict[str, Tensor]:
        """'step_sizes' (steps·passes,) before the softplus; 'label_logits' (M, K) where labels are learned."""
        found = {RATES: start.canvases.new_full((self.total,), raw_rate(self.step_size)).detach()}
        if self.learn_labels:
            found[LOGITS] = starting_logits(start, self.label_confidence).detach()
        return found

    def finish(self, synthetic: SyntheticSet) -> SyntheticSet:
        """The set as it is given away: step sizes as they are used, learned labels among the soft labels."""
        rates = F.softplus(synthetic.extras[RATES].detach())
        return keep_learned_labels(replace(synthetic, extras={**synthetic.extras, RATES: rates}))

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``; one loss for all classes, given as class -1."""
        rng = state.rng("unroll")
        last, first = self.total, 0
        if self.window is not None:
            last = int(torch.randint(self.window, self.total + 1, (), generator=rng))
            first = last - self.window
        sgd, weights = InnerSGD(state.network, self.recompute), parameters_of(state.network)
        rates = F.softplus(state.synthetic.extras[RATES])  # (steps·passes,)
        with torch.no_grad():
            weights = sgd.run(weights, self._batches(state, 0, first, rng), rates[:first])
        weights = sgd.run(weights, self._batches(state, first, last, rng), rates[first:last])
        yield -1, sgd.loss(weights, *self._real(state))

    def _batches(self, state: MatchState, first: int, last: int, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """What steps ``first`` up to ``last`` train on: prepared images, one augmentation an image, and labels."""
        images, hard = state.synthetic.decode()
        labels, shape = labels_of(state.synthetic, hard), tuple(images.shape[1:])
        shares = parts(len(images) // state.info.num_classes, state.info.num_classes, self.steps)
        batches = []
        for step in range(first, last):
            rows = shares[step % self.steps]
            draw, rows = state.augmentation.draw(len(rows), shape, rng), rows.to(images.device)
            batches.append((state.prepare(images[rows], draw), labels[rows]))
        return batches

    def _real(self, state: MatchState) -> tuple[Tensor, Tensor]:
        data = state.sampler.data
        if self.real_batch:
            order = torch.randperm(len(data), generator=state.rng("unroll-real"))
            rows = order[: self.real_batch].to(data.labels.device)
        else:
            rows = torch.cat([state.sampler.rows(c, state.iteration) for c in range(state.info.num_classes)])
        return state.kernels.compute.cast(state.info.normalise(data.images[rows])), data.labels[rows]
