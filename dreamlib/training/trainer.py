"""Training a network on labelled images and asking it for predictions; used on real and on decoded images alike."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib._engine.compiled_network import CompiledNetwork, Weights, weights_of
from dreamlib._engine.compute import Compute
from dreamlib._engine.network import network_traits
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.sampling.real_batches import EndlessPass
from dreamlib.training.augment import Augmentation, box_mask, cutmix, draw_cutmix

PREDICT_BATCH = 128  # bounds the memory of predictions and embeddings; results do not depend on it
GPU_PREDICT_BATCHES = 8  # of them at once on a GPU, which idles on one
STEPS_RECORDED = 8  # training steps in one CUDA graph, at most


@dataclass(frozen=True)
class TrainSettings:
    """SGD with what is done to each batch; the learning rate is constant unless ``fit`` decays it.

    ``label_smoothing``: the share of every label that is spread evenly over all classes.
    """

    batch: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(()))
    cutmix: float = 0.0
    label_smoothing: float = 0.0


def augmentation_for(info: DatasetInfo, ops: str, mode: str = "idc") -> Augmentation:
    """The named augmentation, without mirror images where they change the class (a mirrored digit is another sign).

    >>> digits = DatasetInfo("toy", ("0", "1"), 1, 8, (0.0,), (1.0,), flip=False)
    >>> augmentation_for(digits, "flip_crop").ops
    ('crop',)
    """
    augmentation = Augmentation.parse(ops, mode=mode)
    return (
        augmentation if info.flip else replace(augmentation, ops=tuple(op for op in augmentation.ops if op != "flip"))
    )


@cache
def _shared_kernels(name: str, options: str, info: DatasetInfo, compute: Compute) -> CompiledNetwork:
    return CompiledNetwork(compute.place(build(name, info, torch.Generator(), json.loads(options))), compute)


def compiled_network(network: tuple[str, dict[str, Any]], info: DatasetInfo, compute: Compute) -> CompiledNetwork:
    """The kernels of an architecture, made once in a process: torch.compile gives up on code it meets too often."""
    return _shared_kernels(network[0], json.dumps(network[1], sort_keys=True), info, compute)


def smoothed(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Class numbers (n,) or probabilities (n, K) → probabilities (n, K), ``share`` of them spread over all classes.

    As ``label_smoothing`` of torch's cross-entropy (Szegedy et al., CVPR 2016).

    >>> smoothed(torch.tensor([1]), 2, 0.5).tolist()
    [[0.25, 0.75]]
    """
    known = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
    return known * (1 - share) + share / num_classes


class Trainer:
    """A network with its optimiser; ``step`` is one SGD step on images in [0, 1].

    One augmentation draw per image; CutMix with probability ``settings.cutmix`` (β = 1).
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

    def enter(
        self, epoch: int, epochs: int, schedule: Callable[[float, int, int], float], clean_share: float = 0.0
    ) -> None:
        """Take up the rate that ``schedule`` has for ``epoch``, from 0, of ``epochs``; call it before its steps.

        The last ``clean_share`` of the epochs, a share, have no CutMix and no augmentation but mirror images.
        """
        if epoch >= epochs - round(epochs * clean_share):
            augmentation = self.settings.augmentation
            mirrored = replace(augmentation, ops=tuple(op for op in augmentation.ops if op == "flip"))
            self.settings = replace(self.settings, augmentation=mirrored, cutmix=0.0)
        rate = schedule(self.settings.lr, epoch, epochs)
        if schedule is tenth_lr and epoch and rate != schedule(self.settings.lr, epoch - 1, epochs):
            self.optimizer.state.clear()  # DC makes a new optimiser where the rate drops, so momentum begins at zero
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def train(
        self, images: Tensor, labels: Tensor, draw_rows: Callable[[], Tensor], steps: int, rng: torch.Generator
    ) -> None:
        """``steps`` steps, each on the rows of (N, C, H, W) images and their labels that ``draw_rows`` gives it.

        ``draw_rows`` may draw from ``rng``: it is called just before the step's own draws.
        """
        if not self.kernels.replays:
            for _ in range(steps):
                rows = draw_rows().to(labels.device, non_blocking=True)
                self.step(images[rows], labels[rows], rng)
            return
        for first in range(0, steps, STEPS_RECORDED):
            rows, drawn = [], []
            for _ in range(min(STEPS_RECORDED, steps - first)):
                rows.append(draw_rows())
                drawn.append(self._draw(len(rows[-1]), images, rng))
            taken = torch.stack(rows).to(labels.device, non_blocking=True)
            self._recorded_steps(images[taken], labels[taken], drawn)

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """One step on (N, C, H, W) images and their labels; returns the loss before it, detached."""
        if self.kernels.replays:
            drawn = self._draw(len(images), images, rng)
            return self._recorded_steps(images.unsqueeze(0), labels.unsqueeze(0), [drawn])[0]
        with torch.no_grad():
            x = self.info.normalise(images)
            if self.settings.label_smoothing:
                labels = smoothed(labels, self.info.num_classes, self.settings.label_smoothing)
            x = self.settings.augmentation.apply(x, self.settings.augmentation.draw(len(x), tuple(x.shape[1:]), rng))
            x, a, b, lam = cutmix(x, labels, rng, probability=self.settings.cutmix)
            x = self.kernels.compute.cast(x)
        if b is a:
            b = a.clone()  # one tensor in two places would be compiled apart
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

    def _draw(self, count: int, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A step's random numbers as tensors: augmentation's, CutMix's partners, its box with the kept share."""
        numbers = self.settings.augmentation.uniform(count, rng)
        mix = draw_cutmix(count, tuple(images.shape[2:]), rng, probability=self.settings.cutmix)
        partner = torch.arange(count) if mix is None else mix.partner
        return numbers, partner, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0] if mix is None else [*mix.box, mix.lam])

    def _recorded_steps(self, images: Tensor, labels: Tensor, drawn: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """``step`` for each of (S, N, C, H, W) images, by one function without a branch, recorded for all networks.

        Returns the losses (S,) before each step.
        """
        how, device = self.settings, images.device
        parameters, slots = self._parameters, self.optimizer.state
        numbers, *mixes = (torch.stack(part) for part in zip(*drawn, strict=True))
        # All steps' at once: many small operations, whose time the CPU would rather spend on the next iteration's.
        table = how.augmentation.of_uniform(numbers.flatten(0, 1), tuple(images.shape[2:])).table()
        with torch.no_grad():
            for parameter in parameters.values():
                if slots[parameter].get("momentum_buffer") is None:
                    slots[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            momenta = {name: slots[parameter]["momentum_buffer"] for name, parameter in parameters.items()}
            weights = {name: parameter.detach() for name, parameter in parameters.items()}
            tables = (part.to(device, non_blocking=True) for part in (table.unflatten(0, numbers.shape[:2]), *mixes))
            lr = torch.full((), self.optimizer.param_groups[0]["lr"], dtype=torch.float64, device=device)
            key = ("training", how.augmentation, how.label_smoothing, how.momentum, how.weight_decay, self.info)
            recorded = self.kernels.recorded(key, self._steps(), high_priority=True)
            *new, losses = recorded(weights, momenta, lr, images, labels, *tables)
            for old, latest in zip((weights, momenta), new, strict=True):
                torch._foreach_copy_(list(old.values()), [latest[name] for name in old])
        return losses.clone()

    def _steps(self) -> Callable[..., tuple[Weights, Weights, Tensor]]:
        """What is recorded: (weights, momenta, rate, images, labels, draws) → (weights, momenta, losses)."""
        how, info, kernels = self.settings, self.info, self.kernels

        def prepare(images: Tensor, table: Tensor, partner: Tensor, box: Tensor) -> Tensor:
            size = tuple(images.shape[2:])
            x = how.augmentation.apply(info.normalise(images), how.augmentation.from_table(table, size))
            return kernels.compute.cast(torch.where(box_mask(box[:4], *size), x[partner], x))

        prepared = kernels.compiled(("training images", how.augmentation, info), prepare)

        def steps(
            weights: Weights, momenta: Weights, lr: Tensor, images: Tensor, labels: Tensor, *tables: Tensor
        ) -> tuple[Weights, Weights, Tensor]:
            losses = []
            for x, y, table, partner, box in zip(images, labels, *tables, strict=True):
                if how.label_smoothing:
                    y = smoothed(y, info.num_classes, how.label_smoothing)
                x = prepared(x, table, partner, box)
                gradients, loss = kernels.training_gradient(weights, x, y, y[partner], box[4])
                weights, momenta = _sgd(weights, gradients, momenta, lr, how)
                losses.append(loss)
            return weights, momenta, torch.stack(losses)

        return steps


def _sgd(
    weights: Weights, gradients: Weights, momenta: Weights, lr: Tensor, how: TrainSettings
) -> tuple[Weights, Weights]:
    """(weights, momenta) after a step of SGD, as torch.optim.SGD takes it; a momentum is zero before the first."""
    names, values = list(weights), list(weights.values())
    change = torch._foreach_add([gradients[name] for name in names], values, alpha=how.weight_decay)
    moved = torch._foreach_mul([momenta[name] for name in names], how.momentum)
    torch._foreach_add_(moved, change)
    step = torch._foreach_mul(moved, lr.to(values[0].dtype))
    return dict(zip(names, torch._foreach_sub(values, step), strict=True)), dict(zip(names, moved, strict=True))


def decayed_lr(lr: float, epoch: int, epochs: int) -> float:
    """IDC's schedule: × 0.2 from epoch 2·epochs // 3 on, × 0.2 again from 5·epochs // 6 on (epochs count from 0).

    >>> [round(decayed_lr(0.01, e, 1000), 6) for e in (0, 665, 666, 832, 833)]
    [0.01, 0.01, 0.002, 0.002, 0.0004]
    """
    return lr * 0.2 ** sum(epoch >= milestone for milestone in (2 * epochs // 3, 5 * epochs // 6))


def tenth_lr(lr: float, epoch: int, epochs: int) -> float:
    """The schedule of DC's evaluation and its successors': × 0.1 after epoch epochs // 2 + 1 (epochs count from 0).

    Their code changes the rate, and makes a new optimiser, at the end of that epoch, so the next is the first to feel
    it. Its loops count to their number of epochs inclusively: 301 of them for '300'.

    >>> [round(tenth_lr(0.01, e, 301), 6) for e in (0, 151, 152)]
    [0.01, 0.01, 0.001]
    """
    return lr * (0.1 if epoch > epochs // 2 + 1 else 1.0)


def constant_lr(lr: float, epoch: int, epochs: int) -> float:
    """No schedule."""
    return lr


SCHEDULES = {"idc_steps": decayed_lr, "tenth": tenth_lr, "none": constant_lr}


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
    schedule: Callable[[float, int, int], float] = decayed_lr,
    clean_share: float = 0.0,
    on_epoch: Callable[[], object] | None = None,
) -> float:
    """Train ``network`` for ``epochs`` passes over shuffled batches; returns the last epoch's mean loss.

    ``images`` (N, C, H, W) in [0, 1]; the last batch of an epoch may be smaller. Everything random comes from ``seed``.
    The last ``clean_share`` of the epochs, a share, have no CutMix and no augmentation but mirror images.
    """
    trainer, mean = Trainer(network, info, settings, kernels), float("nan")
    for epoch in range(epochs):
        trainer.enter(epoch, epochs, schedule, clean_share)
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
    """Train ``network`` on real images for ``epochs`` passes, or a part of one, as IDC and DREAM train theirs.

    SGD of .01 with momentum .9 and weight decay 5e-4 in batches of 128, colour and crop, CutMix with probability .5.
    """
    settings = TrainSettings(batch=128, augmentation=augmentation_for(info, "color_crop"), cutmix=0.5)
    order = EndlessPass(len(data), settings.batch, seed, "real-pass")
    steps = count()
    Trainer(network, info, settings, kernels).train(
        data.images, data.labels, lambda: order.at(next(steps)), max(1, round(epochs * order.batches)),
        generator(seed, "train-on-real"),
    )  # fmt: skip


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, info: DatasetInfo, compute: Compute) -> Tensor:
    """``function`` of normalised images (N, C, H, W), a bounded batch at a time; rows concatenated, float32 or wider.

    The last batch is filled up to the full size, so that one compiled shape serves all.
    """
    parts, most = [], PREDICT_BATCH * GPU_PREDICT_BATCHES
    if compute.device.type != "cuda" or len(images) < most:
        most = PREDICT_BATCH
    for batch in images.split(most):
        x = compute.cast(info.normalise(batch))
        if len(images) > most > len(x):
            x = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
            x = compute.cast(x)
        parts.append(function(x)[: len(batch)])
    out = torch.cat(parts)
    return out.float() if out.dtype == torch.bfloat16 else out


def predict(network: nn.Module, images: Tensor, info: DatasetInfo, kernels: CompiledNetwork) -> Tensor:
    """Logits (N, K) in evaluation mode."""
    weights, logits = weights_of(network), kernels.replayed("logits")
    return in_batches(lambda x: logits(weights, x), images, info, kernels.compute)


def embed(
    network: nn.Module, images: Tensor, info: DatasetInfo, kernels: CompiledNetwork, *, spatial_mean: bool = False
) -> Tensor:
    """Features (N, D): the flattened output of the network's last block, in evaluation mode.

    ``spatial_mean`` averages it over space, to (N, channels): 16 times fewer numbers of a ConvNet-3 at 32 pixels.
    Raises ValueError for a network that does not say its ``feature_channels``.
    """
    weights, features = weights_of(network), kernels.replayed("features")
    if not spatial_mean:
        return in_batches(lambda x: features(weights, x), images, info, kernels.compute)
    channels = feature_channels(network)
    return in_batches(lambda x: pooled_over_space(features(weights, x), channels), images, info, kernels.compute)


def last_linear(network: nn.Module) -> nn.Linear:
    """The linear layer that a network's features go through to become logits.

    Raises ValueError for a network without one.

    >>> last_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    Linear(in_features=3, out_features=2, bias=True)
    """
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(
            f"last_layer 'ridge' fits a network's last linear layer, and {type(network).__name__} has none: use "
            "last_layer: trained"
        )
    return found[-1]


@torch.no_grad()
def fit_last_layer(
    network: nn.Module, images: Tensor, labels: Tensor, info: DatasetInfo, kernels: CompiledNetwork, penalty: float
) -> None:
    """Replace the network's last layer by ridge regression from its features of the images to their labels (FRePo).

    ``images`` (N, C, H, W) in [0, 1], as they are; ``labels`` (N,) class numbers or (N, K) probabilities, less 1/K as
    targets. The penalty on the squared weights is ``penalty`` × the mean squared norm of the features, as in
    ``dreamlib.matching.ridge``; there is no bias.
    """
    layer = last_linear(network)
    features = embed(network, images, info, kernels).double().cpu().numpy()
    targets = smoothed(labels, info.num_classes, 0.0).double().cpu().numpy() - 1 / info.num_classes
    from sklearn.linear_model import Ridge  # here, because most stages fit none and would pay for importing it

    fitted = Ridge(alpha=penalty * float((features**2).sum(1).mean()), fit_intercept=False).fit(features, targets)
    layer.weight.copy_(torch.from_numpy(fitted.coef_))
    if layer.bias is not None:
        layer.bias.zero_()


def feature_channels(network: nn.Module) -> int:
    """The channels of a network's features; raises ValueError where features have no places to average over."""
    channels = network_traits(network).feature_channels
    if channels is None:
        raise ValueError(
            f"cluster_features 'spatial_mean' averages a feature map over space, which {type(network).__name__} does "
            "not give; use convnet, or cluster_features: current"
        )
    return channels


def pooled_over_space(features: Tensor, channels: int) -> Tensor:
    """(N, channels·h·w), as flattened from (N, channels, h, w), → (N, channels); half precision is averaged in float32.

    >>> pooled_over_space(torch.tensor([[1.0, 3.0, 10.0, 20.0]]), channels=2).tolist()
    [[2.0, 15.0]]
    """
    wide = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
    return wide.unflatten(1, (channels, -1)).mean(2)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of rows whose largest logit is the label's.

    >>> accuracy(torch.tensor([[0., 1.], [1., 0.], [0., 1.]]), torch.tensor([1, 0, 0]))
    0.6666666666666666
    """
    return int((logits.argmax(1) == labels).sum()) / len(labels)
