"""The history of matching losses, and the errors for losses and values that are not finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


class DistillationDivergedError(RuntimeError):
    """A matching loss, a pixel or a learned value is not finite; the last good checkpoint stays."""


@dataclass
class LossHistory:
    """Mean matching loss of each inner iteration, as ``rows`` of (iteration, loss).

    Reading a loss on a GPU waits for all work queued before it, so losses are read ``read_every`` iterations at a time.
    With ``read_every`` 1 each loss is checked as soon as it is added.

    class_names: names of all K classes, for errors.
    image_lr: step size on pixels, for errors.
    """

    class_names: Sequence[str]
    image_lr: float
    read_every: int = 1
    rows: list[tuple[int, float]] = field(default_factory=list)
    unread: list[tuple[int, list[tuple[int, Tensor]]]] = field(default_factory=list)

    def add(self, iteration: int, label: int, loss: Tensor) -> None:
        """Add the loss of one class, of the whole set (label -1, a scalar), or of all classes (label -1, (K,)).

        With ``read_every`` 1, raise DistillationDivergedError if it is not finite.
        """
        if self.read_every == 1:
            self._check(iteration, label, float(loss))
        if not self.unread or self.unread[-1][0] != iteration:
            self.unread.append((iteration, []))
        self.unread[-1][1].append((label, loss))

    @property
    def due(self) -> bool:
        """Whether ``read_every`` iterations are waiting to be read."""
        return len(self.unread) >= self.read_every

    def read(self) -> None:
        """Move all unread losses to ``rows``; raise DistillationDivergedError for one that is not finite."""
        for iteration, losses in self.unread:
            values = []
            for label, loss in losses:
                class_losses = loss.reshape(-1).tolist()
                labels = [label] if len(class_losses) == 1 else range(len(class_losses))
                for number, value in zip(labels, class_losses, strict=True):
                    self._check(iteration, number, value)
                values += class_losses
            self.rows.append((iteration, sum(values) / len(values)))
        self.unread.clear()

    def _check(self, iteration: int, label: int, loss: float) -> None:
        if not math.isfinite(loss):
            whose = f"class {label} ({self.class_names[label]})" if label >= 0 else "all classes"
            raise DistillationDivergedError(
                f"the matching loss of {whose} is {loss} at inner iteration {iteration}, with image_lr "
                f"{self.image_lr:g}: lower image_lr and run again"
            )
