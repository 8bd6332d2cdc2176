"""SGD on labelled images, step by step or captured as a CUDA graph; the same for real and for decoded images."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork, Weights, weights_of
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages, as_float
from dreamlib.networks import build
from dreamlib.sampling.real_batches import EndlessPass
from dreamlib.training.augment import Augmentation, augmentation_for
from dreamlib.training.cutmix import box_mask, cutmix, draw_cutmix
from dreamlib.training.schedules import Schedule, idc_steps_lr, tenth_lr

STEPS_RECORDED = 8  # maximum number of training steps per CUDA graph


@dataclass(frozen=True)
class TrainSettings:
    """Settings of SGD and of batches.

    batch: images in a batch.
    lr: initial learning rate; it stays constant unless a schedule changes it.
    augmentation: drawn anew for each batch.
    cutmix: probability of CutMix for a batch.
    """

    batch: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(()))
    cutmix: float = 0.0


@cache
def _shared_kernels(name: str, options: str, info: DatasetInfo, compute: Compute) -> CompiledNetwork:
    return CompiledNetwork(compute.place(build(name, info, torch.Generator(), json.loads(options))), compute)


def compiled_network(network: tuple[str, dict[str, Any]], info: DatasetInfo, compute: Compute) -> CompiledNetwork:
    """Return the compiled functions of an architecture, given as (name, options).

    Cached because torch.compile falls back to eager execution after too many compilations.
    """
    return _shared_kernels(network[0], json.dumps(network[1], sort_keys=True), info, compute)


class Trainer:
    """A network with its optimiser.

    network: trained in place.
    info: the statistics that images are normalised by.
    settings: see ``TrainSettings``.
    kernels: the compiled functions of the network's architecture, see ``compiled_network``.
    """

    def __init__(
        self, network: nn.Module, info: DatasetInfo, settings: TrainSettings, kernels: CompiledNetwork
    ) -> None:
        self.network, self.info, self.settings, self.kernels = network, info, settings, kernels
        self.optimizer = torch.optim.SGD(
            network.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay,
            fused=True if kernels.compute.device.type == "cuda" else None,
        )  # fmt: skip
        self._parameters = dict(network.named_parameters())

    def start_epoch(self, epoch: int, epochs: int, schedule: Schedule, clean_share: float = 0.0) -> None:
        """Set the learning rate and the augmentation of an epoch, before its first step.

        epoch, epochs: number of the epoch, from 0, and of all epochs.
        schedule: see ``dreamlib.training.schedules``.
        clean_share: final fraction of the epochs, without CutMix and with flips as the only augmentation.
        """
        if epoch >= epochs - round(epochs * clean_share):
            augmentation = self.settings.augmentation
            mirrored = replace(augmentation, ops=tuple(op for op in augmentation.ops if op == "flip"))
            self.settings = replace(self.settings, augmentation=mirrored, cutmix=0.0)
        rate = schedule(self.settings.lr, epoch, epochs)
        if schedule is tenth_lr and epoch and rate != schedule(self.settings.lr, epoch - 1, epochs):
            self.optimizer.state.clear()  # DC's code creates a new optimiser when it lowers the rate: momentum is zero
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def train(
        self, images: Tensor, labels: Tensor, draw_rows: Callable[[], Tensor], steps: int, rng: torch.Generator
    ) -> None:
        """Take ``steps`` steps.

        images: (N, C, H, W) in [0, 1], or bytes.
        labels: (N,) class numbers or (N, K) probabilities.
        draw_rows: returns the rows of the next batch. It is called just before the step's random numbers are drawn and
            may use the same generator.
        rng: generator of the augmentation and of CutMix.
        """
        if not self.kernels.uses_cuda_graphs:
            for _ in range(steps):
                rows = draw_rows().to(labels.device, non_blocking=True)
                self.step(images[rows], labels[rows], rng)
            return
        for first in range(0, steps, STEPS_RECORDED):
            batches, draws = [], []
            for _ in range(min(STEPS_RECORDED, steps - first)):
                batches.append(draw_rows())
                draws.append(self._draw(len(batches[-1]), images, rng))
            rows = torch.stack(batches).to(labels.device, non_blocking=True)  # (S, N)
            self._recorded_steps(as_float(images[rows]), labels[rows], draws)

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Take one step on a batch and return its loss before the step, detached.

        images: (N, C, H, W) in [0, 1], or bytes.
        labels: (N,) class numbers or (N, K) probabilities.
        rng: generator of the augmentation and of CutMix.
        """
        images = as_float(images)
        if self.kernels.uses_cuda_graphs:
            draw = self._draw(len(images), images, rng)
            return self._recorded_steps(images.unsqueeze(0), labels.unsqueeze(0), [draw])[0]
        with torch.no_grad():
            x = self.info.normalise(images)
            x = self.settings.augmentation.apply(x, self.settings.augmentation.draw(len(x), tuple(x.shape[1:]), rng))
            x, a, b, lam = cutmix(x, labels, rng, probability=self.settings.cutmix)
            x = self.kernels.compute.cast(x)
        if b is a:
            b = a.clone()  # torch.compile would specialise on two arguments being the same tensor
        weights = weights_of(self.network)
        share = torch.tensor(lam, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        if self.kernels.pure:
            gradients, loss = self.kernels.training_gradient(weights, x, a, b, share)
            for name, parameter in self.network.named_parameters():
                parameter.grad = gradients[name]
        else:
            loss = self.kernels.training_loss(weights, x, a, b, share)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _draw(self, batch: int, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return a step's random numbers: augmentation (N, 11), CutMix partners (N,), and its box and ``lam`` (5,)."""
        numbers = self.settings.augmentation.uniform(batch, rng)
        mix = draw_cutmix(batch, tuple(images.shape[2:]), rng, probability=self.settings.cutmix)
        partner = torch.arange(batch) if mix is None else mix.partner
        return numbers, partner, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0] if mix is None else [*mix.box, mix.lam])

    def _recorded_steps(self, images: Tensor, labels: Tensor, draws: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Take S steps by a CUDA graph, shared by all networks of an architecture; return the losses (S,).

        images: (S, N, C, H, W).
        labels: (S, N) or (S, N, K).
        draws: S results of ``_draw``.
        """
        settings, device = self.settings, images.device
        parameters, slots = self._parameters, self.optimizer.state
        numbers, *mixes = (torch.stack(part) for part in zip(*draws, strict=True))
        # For all steps at once: these are many small operations, and the CPU has to prepare the next iteration.
        table = settings.augmentation.from_uniform(numbers.flatten(0, 1), tuple(images.shape[2:])).table()
        with torch.no_grad():
            for parameter in parameters.values():
                if slots[parameter].get("momentum_buffer") is None:
                    slots[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            momenta = {name: slots[parameter]["momentum_buffer"] for name, parameter in parameters.items()}
            weights = {name: parameter.detach() for name, parameter in parameters.items()}
            tables = (part.to(device, non_blocking=True) for part in (table.unflatten(0, numbers.shape[:2]), *mixes))
            lr = torch.full((), self.optimizer.param_groups[0]["lr"], dtype=torch.float64, device=device)
            key = (
                "training", settings.augmentation, settings.momentum, settings.weight_decay, self.info,
            )  # fmt: skip
            recorded = self.kernels.graphs.get(key, self._steps(), high_priority=True)
            *results, losses = recorded(weights, momenta, lr, images, labels, *tables)
            for old, new in zip((weights, momenta), results, strict=True):
                torch._foreach_copy_(list(old.values()), [new[name] for name in old])
        return losses.clone()

    def _steps(self) -> Callable[..., tuple[Weights, Weights, Tensor]]:
        """Return the captured function: (weights, momenta, rate, images, labels, *draws) → (weights, momenta, losses).

        It contains no branch on a tensor's value, as a CUDA graph requires.
        """
        settings, info, kernels = self.settings, self.info, self.kernels

        def prepare(images: Tensor, table: Tensor, partner: Tensor, box: Tensor) -> Tensor:
            size = tuple(images.shape[2:])
            draw = settings.augmentation.from_table(table, size)
            x = settings.augmentation.apply(info.normalise(images), draw)
            return kernels.compute.cast(torch.where(box_mask(box[:4], *size), x[partner], x))

        compiled_prepare = kernels.compiled(("training images", settings.augmentation, info), prepare)

        def steps(
            weights: Weights, momenta: Weights, lr: Tensor, images: Tensor, labels: Tensor, *tables: Tensor
        ) -> tuple[Weights, Weights, Tensor]:
            losses = []
            for x, y, table, partner, box in zip(images, labels, *tables, strict=True):
                x = compiled_prepare(x, table, partner, box)
                gradients, loss = kernels.training_gradient(weights, x, y, y[partner], box[4])
                weights, momenta = _sgd(weights, gradients, momenta, lr, settings)
                losses.append(loss)
            return weights, momenta, torch.stack(losses)

        return steps


def _sgd(
    weights: Weights, gradients: Weights, momenta: Weights, lr: Tensor, settings: TrainSettings
) -> tuple[Weights, Weights]:
    """Return (weights, momenta) after a step of torch.optim.SGD; momenta are zero before the first step."""
    names, values = list(weights), list(weights.values())
    change = torch._foreach_add([gradients[name] for name in names], values, alpha=settings.weight_decay)
    moved = torch._foreach_mul([momenta[name] for name in names], settings.momentum)
    torch._foreach_add_(moved, change)
    step = torch._foreach_mul(moved, lr.to(values[0].dtype))
    return dict(zip(names, torch._foreach_sub(values, step), strict=True)), dict(zip(names, moved, strict=True))


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    info: DatasetInfo,
    settings: TrainSettings,
    kernels: CompiledNetwork,
    *,
    epochs: int,
    seed: int,
    schedule: Schedule = idc_steps_lr,
    clean_share: float = 0.0,
    on_epoch: Callable[[], object] | None = None,
) -> float:
    """Train ``network`` in place and return the last epoch's mean loss.

    images: (N, C, H, W) in [0, 1], or bytes, in a new random order each epoch; an epoch's last batch may be smaller.
    labels: (N,) class numbers or (N, K) probabilities.
    info, settings, kernels: see ``Trainer``.
    epochs: passes over the images.
    seed: source of all random numbers.
    schedule, clean_share: see ``Trainer.start_epoch``.
    on_epoch: called after each epoch.
    """
    trainer, mean = Trainer(network, info, settings, kernels), float("nan")
    for epoch in range(epochs):
        trainer.start_epoch(epoch, epochs, schedule, clean_share)
        rng = generator(seed, "fit", epoch)
        order = torch.randperm(len(labels), generator=rng).to(labels.device, non_blocking=True)
        losses = [trainer.step(images[rows], labels[rows], rng) for rows in order.split(settings.batch)]
        mean = torch.stack(losses).mean() if epoch == epochs - 1 else mean
        if on_epoch:
            on_epoch()
    return float(mean)


def train_on_real(
    network: nn.Module, data: LabeledImages, info: DatasetInfo, kernels: CompiledNetwork, *, epochs: float, seed: int
) -> None:
    """Train ``network`` on real images, in place, as IDC and DREAM do, for ``epochs`` passes or a fraction of one.

    SGD with rate 0.01, momentum 0.9 and weight decay 5e-4, batches of 128, the augmentation color_crop, and CutMix with
    probability 0.5.
    """
    settings = TrainSettings(batch=128, augmentation=augmentation_for(info, "color_crop"), cutmix=0.5)
    order = EndlessPass(len(data), settings.batch, seed, "real-pass")
    steps = count()
    Trainer(network, info, settings, kernels).train(
        data.images, data.labels, lambda: order.at(next(steps)), max(1, round(epochs * order.batches)),
        generator(seed, "train-on-real"),
    )  # fmt: skip
