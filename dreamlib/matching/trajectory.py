"""Trajectory matching: a few steps on the distilled set should lead to where epochs on real images led (MTT)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamlib._engine.compiled_network import Weights
from dreamlib._engine.files import find_above
from dreamlib.data.types import DatasetInfo
from dreamlib.matching.experts import Experts, expert_folder
from dreamlib.matching.inner import InnerTraining
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective
from dreamlib.matching.soft_labels import labels_of
from dreamlib.settings import Natural, Positive, Rate
from dreamlib.synthetic.synthetic_set import SyntheticSet

RATE = "step_size"


def squared_distance(a: Weights, b: Weights) -> Tensor:
    """Return ‖a − b‖² over all weights.

    >>> squared_distance({"w": torch.arange(3.0), "b": torch.zeros(1)}, {"w": torch.zeros(3), "b": torch.ones(1)})
    tensor(6.)
    """
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


@OBJECTIVES.register("trajectory")
@dataclass(frozen=True)
class TrajectoryMatching(Objective):
    """‖θ_N − θ*‖² / ‖θ_0 − θ*‖² (MTT, Cazenavette et al., CVPR 2022).

    θ_0 are a random expert's weights after t < ``max_start`` epochs, θ* the same expert's ``expert_epochs`` later, and
    θ_N the weights after ``synthetic_steps`` steps of SGD from θ_0 on the decoded images. The loop's network only
    provides the architecture: use ``train_on: none``.

    experts: folder of the trajectories, relative to the project (``dreamlib.matching.experts`` makes them);
        trajectories on whitened images are in a subfolder.
    batch: decoded images per step (0: all), shuffled in every pass, with one augmentation per image.
    step_size: initial value of the step size, which is learned.
    recompute: bounds memory, see ``InnerTraining``.

    Raise ExpertError if the experts are missing or too short.

    >>> TrajectoryMatching(synthetic_steps=50, max_start=2).expert_epochs
    2
    """

    by_class: ClassVar[bool] = False
    uses_sampler: ClassVar[bool] = False  # the experts have seen the real images

    experts: str = "results/experts"
    synthetic_steps: Positive = 30
    expert_epochs: Positive = 2
    max_start: Positive = 20
    batch: Natural = 0
    step_size: Rate = 0.01
    recompute: bool = True

    def learned(self, start: SyntheticSet) -> dict[str, Tensor]:
        """Return 'step_size', a scalar."""
        return {RATE: start.canvases.new_tensor(self.step_size)}

    def losses(self, state: MatchState) -> Iterator[tuple[int, Tensor]]:
        """See ``Objective.losses``; one loss for all classes, given as class -1."""
        rate = state.synthetic.extras[RATE]
        if (value := float(rate.detach())) <= 0:
            raise ValueError(
                f"the learned step size fell to {value:.3g} at iteration {state.iteration}: lower learned_lr, or "
                "start from a larger options.step_size"
            )
        start, target = self._start_and_target(state)
        sgd = InnerTraining(state.network, self.recompute)
        reached = sgd.run(start, self._batches(state), [rate] * self.synthetic_steps)
        yield -1, squared_distance(reached, target) / squared_distance(start, target)

    def check(self, network: nn.Module, info: DatasetInfo, expert_epochs: int | None = None) -> None:
        """See ``Objective.check``; reject experts that are too short."""
        if expert_epochs is not None:
            self._check_reach(expert_epochs)

    def _check_reach(self, epochs: int) -> None:
        if self.max_start - 1 + self.expert_epochs > epochs:
            raise ValueError(
                f"options.max_start = {self.max_start} and expert_epochs = {self.expert_epochs} reach beyond the "
                f"{epochs} epochs of the experts: choose max_start ≤ {epochs - self.expert_epochs + 1}, or train the "
                "experts longer"
            )

    def open_experts(self, network: nn.Module, info: DatasetInfo) -> Experts:
        """Return the trajectories to follow; raise ExpertError for missing ones or another network or data set."""
        folder = expert_folder(self.experts, info.whitening)
        return Experts.open(find_above(folder) or folder, network, info)

    def _start_and_target(self, state: MatchState) -> tuple[Weights, Weights]:
        """Return θ_0 and θ* of this iteration."""
        experts = self.open_experts(state.network, state.info)
        self._check_reach(experts.epochs)
        rng = state.rng("trajectory")
        expert = int(torch.randint(len(experts.paths), (), generator=rng))
        epoch = int(torch.randint(self.max_start, (), generator=rng))
        device = state.synthetic.canvases.device
        return experts.weights(expert, epoch, device), experts.weights(expert, epoch + self.expert_epochs, device)

    def _batches(self, state: MatchState) -> list[tuple[Tensor, Tensor]]:
        """Return the prepared images and labels of each step."""
        images, hard = state.synthetic.decode()
        labels, rng, queue = labels_of(state.synthetic, hard), state.rng("trajectory-batches"), []
        batches = []
        for _ in range(self.synthetic_steps):
            if not queue:
                queue = list(torch.randperm(len(images), generator=rng).split(self.batch or len(images)))
            rows = queue.pop()  # the last chunk first, as in the released code
            draw = state.augmentation.draw(len(rows), tuple(images.shape[1:]), rng)
            rows = rows.to(images.device)
            batches.append((state.prepare(images[rows], draw), labels[rows]))
        return batches
