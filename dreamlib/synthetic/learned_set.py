"""The set that a run learns: its leaves, their optimiser, and the step size with its schedule."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dreamlib._engine.losses import DistillationDivergedError
from dreamlib.data.types import DatasetInfo
from dreamlib.settings import DistillParams
from dreamlib.synthetic.synthetic_set import SyntheticSet


def effective_image_lr(settings: DistillParams, ipc: int, info: DatasetInfo) -> float:
    """Return the step size on pixels: as given, or base · ipc/10 · (side/32)², side/28 for MNIST (IDC, DREAM).

    >>> info = DatasetInfo("fashion_mnist", ("a", "b"), 1, 28, (0.2861,), (0.353,))
    >>> round(effective_image_lr(DistillParams(image_lr=1e-4, image_lr_rule="scaled"), 1, info), 8)
    7.66e-06
    """
    if settings.image_lr_rule == "fixed":
        return settings.image_lr
    reference = 28 if info.name == "mnist" else 32
    return settings.image_lr * ipc / 10 * (info.size / reference) ** 2


def scheduled_lr(base: float, schedule: str, iteration: int, total: int) -> float:
    """Return the step size on pixels, and on what else is learned, at inner ``iteration`` of ``total``.

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


class LearnedSet:
    """A copy of the starting set whose canvases, and whatever else is learned, are leaves with an optimiser.

    start: the initial set, on the device of the run.
    learned: initial values of what else is learned, by name; see ``dreamlib.matching.Objective.learned``.
    """

    def __init__(
        self,
        start: SyntheticSet,
        learned: Callable[[SyntheticSet], dict[str, Tensor]],
        settings: DistillParams,
        info: DatasetInfo,
    ) -> None:
        self.synthetic, self.settings, self.info = start, settings, info
        self.synthetic.canvases = start.canvases.clone().requires_grad_(True)
        values = learned(self.synthetic)
        self.synthetic.extras = {name: value.clone().requires_grad_(True) for name, value in values.items()}
        self.lr = effective_image_lr(settings, start.ipc, info)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the canvases and, as a second group, of whatever else is learned.

        The released code of IDC and DREAM updates a shared momentum buffer once per class, so a gradient g keeps moving
        its canvases during the other classes' updates, by image_lr·g/(1 − momentum) in total. ``image_update:
        once_equivalent`` does the same in one plain step for all classes, up to momentum^K.

        Made when a run steps, because the first optimiser of a process imports torch's compiler.
        """
        settings, momentum = self.settings, self.settings.image_momentum
        canvases, *learned = self.leaves
        groups = [{"params": [canvases], "lr": self.lr}]
        if learned:
            groups.append({"params": learned, "lr": settings.learned_lr})
        if settings.image_update == "once_equivalent":
            groups[0]["lr"] = self.lr / (1 - momentum)
            momentum = 0.0
        for group in groups:
            group["initial_lr"] = group["lr"]
        if settings.image_optimizer == "adam":
            return torch.optim.Adam(groups, betas=(0.5, 0.999))
        return torch.optim.SGD(groups, momentum=momentum)

    @property
    def leaves(self) -> list[Tensor]:
        """The canvases, then whatever else is learned."""
        return [self.synthetic.canvases, *self.synthetic.extras.values()]

    @property
    def bounded(self) -> bool:
        """Whether canvases hold pixels of images in [0, 1]."""
        return self.info.bounded and self.synthetic.frequencies is None

    def set_learning_rates(self, iteration: int, total: int) -> None:
        """Set the rates that ``scheduled_lr`` gives for this iteration."""
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled_lr(group["initial_lr"], self.settings.image_lr_schedule, iteration, total)

    def clamp(self) -> None:
        """Clamp pixels to [0, 1]."""
        with torch.no_grad():
            self.synthetic.canvases.clamp_(0, 1)

    def check_finite(self, iteration: int) -> None:
        """Raise DistillationDivergedError if the step at this inner iteration left a value that is not finite.

        A finite loss may have a gradient that is not: such pixels must not reach a checkpoint. The message names the
        learned value, or the first class, and its step size.
        """
        left = f"the step at inner iteration {iteration} left values"
        for name, value in self.synthetic.extras.items():
            if not bool(value.isfinite().all()):
                raise DistillationDivergedError(
                    f"{left} of the learned '{name}' that are not finite, with learned_lr "
                    f"{self.settings.learned_lr:g}: lower learned_lr and run again"
                )
        canvases, classes = self.synthetic.canvases, self.info.classes
        if not bool(canvases.isfinite().all()):
            label = int((~canvases.isfinite()).flatten().nonzero()[0]) * len(classes) // canvases.numel()
            raise DistillationDivergedError(
                f"{left} that are not finite, first in class {label} ({classes[label]}), with image_lr {self.lr:g}: "
                "lower image_lr and run again"
            )

    def snapshot(self) -> Tensor:
        """Return a copy of the canvases on the CPU, clamped if they hold pixels."""
        canvases = self.synthetic.canvases.detach()
        return (canvases.clamp(0, 1) if self.bounded else canvases.clone()).cpu()

    def detach(self) -> SyntheticSet:
        """Return the set with its tensors detached."""
        self.synthetic.canvases = self.synthetic.canvases.detach()
        self.synthetic.extras = {name: value.detach() for name, value in self.synthetic.extras.items()}
        return self.synthetic

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` continues from."""
        return {
            "canvases": self.synthetic.canvases.detach(),
            "extras": {name: value.detach() for name, value in self.synthetic.extras.items()},
            "image_optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Continue from ``state()``."""
        with torch.no_grad():
            self.synthetic.canvases.copy_(saved["canvases"])
            for name, value in saved["extras"].items():
                self.synthetic.extras[name].copy_(value)
        self.optimizer.load_state_dict(saved["image_optimizer"])
