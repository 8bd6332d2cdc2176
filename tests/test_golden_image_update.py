"""Steps on the pixels against the loops of IDC's and DC's released code, with recorded gradients, in float64."""

from dataclasses import dataclass

import pytest
import torch
from golden_numbers import FLOAT64, assert_near, golden, plain_info
from torch import Tensor

from dreamlib.data.types import LabeledImages
from dreamlib.distill import Distiller
from dreamlib.matching import OBJECTIVES, Objective
from dreamlib.settings import DistillParams
from dreamlib.synthetic.synthetic_set import SyntheticSet

TOLERANCE = 1e-12
ITERATIONS, CLASSES = 5, 3


@pytest.fixture
def numbers():
    return golden("image_update")


@dataclass(frozen=True)
class Run:
    """Canvases (6, 1, 4, 4) of five iterations: at and after each class's turn, and at the end of the iteration."""

    at_turn: Tensor  # (5, 3, 6, 1, 4, 4)
    after_turn: Tensor  # (5, 3, 6, 1, 4, 4)
    at_end: Tensor  # (5, 6, 1, 4, 4)


@pytest.fixture
def run(numbers):
    """(update, inner iterations) → what five iterations with the recorded gradients do to the pixels."""
    start, labels = numbers["start"], torch.arange(CLASSES).repeat_interleave(2)
    before: list[Tensor] = []
    after: list[Tensor] = []

    @OBJECTIVES.register("recorded")
    @dataclass(frozen=True)
    class Recorded(Objective):
        def losses(self, state):
            for label in state.classes:
                before.append(state.synthetic.canvases.detach().clone())
                yield label, (state.synthetic.decode_class(label) * numbers["gradients"][state.iteration, label]).sum()
                after.append(state.synthetic.canvases.detach().clone())

    def five_iterations(update, inner_iterations=2 * ITERATIONS):
        settings = DistillParams(
            objective="recorded", factor=1, train_on="none", augmentation="none", image_lr=numbers["rate"].item(),
            image_momentum=numbers["momentum"].item(), image_update=update, outer_iterations=ITERATIONS,
            inner_iterations=inner_iterations,
        )  # fmt: skip
        distiller = Distiller(
            SyntheticSet(start, labels, CLASSES), LabeledImages(start, labels, CLASSES), plain_info(start, CLASSES),
            settings, ("convnet", {"width": 4}), FLOAT64, seed=0,
        )  # fmt: skip
        ends = []
        for _ in range(ITERATIONS):
            distiller.step()
            ends.append(distiller.synthetic.canvases.detach().clone())
        turns = (torch.stack(seen).unflatten(0, (ITERATIONS, CLASSES)) for seen in (before, after))
        return Run(*turns, torch.stack(ends))

    yield five_iterations
    OBJECTIVES.pop("recorded")


def test_one_step_a_class_on_the_shared_momentum(run, numbers):
    result = run("per_class")
    assert_near(result.after_turn, numbers["per_class.pixels"], TOLERANCE)
    assert_near(result.at_turn[0, 0], numbers["start"], 0)
    # The first class's step leaves the others alone; the second class's moves the first's on.
    moved = (numbers["per_class.pixels"][0, 1] - numbers["per_class.pixels"][0, 0]).view(CLASSES, -1).abs().amax(1)
    assert moved[0] > 0 and moved[1] > 0 and moved[2] == 0


def test_one_step_on_the_sum_over_classes(run, numbers):
    assert_near(run("batched").at_end, numbers["summed.pixels"], TOLERANCE)


def test_clamping_before_each_outer_iteration(run, numbers):
    """Ours clamps at the end of an outer iteration, the released loop at the start of the next: the same pixels are
    matched, and the momentum is left alone by both.
    """
    result, released = run("per_class", inner_iterations=2), numbers["clamped_every_2.pixels"]
    assert ((numbers["start"] >= 0) & (numbers["start"] <= 1)).all()
    assert_near(result.after_turn[:, -1], released, TOLERANCE)
    for iteration in (2, 4):
        assert_near(result.at_turn[iteration, 0], released[iteration - 1].clamp(0, 1), TOLERANCE)
        assert released[iteration - 1].min() < 0 and released[iteration - 1].max() > 1
    assert_near(result.at_turn[3, 0], released[2], TOLERANCE)


def test_collapsed_is_the_released_update_up_to_the_momentum_to_the_number_of_classes(run, numbers):
    """At a class's turn its earlier gradients g have moved it by rate · g / (1 − m) · (1 − m^(K·age)), where
    once_equivalent has moved it by rate · g / (1 − m): m^K = 2^-3 of a step is missing after one iteration, and
    after many at most rate · max|g| / (1 − m) · m^K / (1 − m^K).
    """
    rate, m = numbers["rate"].item(), numbers["momentum"].item()
    released, ours = numbers["per_class.pixels"], run("once_equivalent").at_turn
    step = rate * numbers["gradients"] / (1 - m)  # (5, 3, 2, 1, 4, 4)
    bound = step.abs().max() * m**CLASSES / (1 - m**CLASSES)
    for label in range(CLASSES):
        mine = slice(2 * label, 2 * label + 2)
        for iteration in range(1, ITERATIONS):
            at_turn = released[iteration, label - 1] if label else released[iteration - 1, -1]
            gap = at_turn[mine] - ours[iteration, label, mine]
            missing = sum(m ** (CLASSES * (iteration - past)) * step[past, label] for past in range(iteration))
            assert_near(gap, missing, TOLERANCE)
            assert 0 < gap.abs().max() <= bound
