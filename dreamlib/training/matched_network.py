"""The network that images are matched on: fresh in each outer iteration, trained between the matching steps."""

from collections.abc import Callable
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib._engine.seeding import generator
from dreamlib._engine.strategies import Strategy
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.sampling.real_batches import EndlessPass
from dreamlib.settings import DistillParams
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import embed, predict
from dreamlib.training.trainer import Trainer, TrainSettings


def network_settings(settings: DistillParams, info: DatasetInfo) -> TrainSettings:
    """Return the training settings of the matched networks."""
    augmentation = augmentation_for(info, settings.network_augmentation, settings.augmentation_mode)
    return TrainSettings(
        settings.network_batch,
        settings.network_lr,
        settings.network_momentum,
        settings.network_weight_decay,
        augmentation,
        settings.cutmix,
    )


class MatchedNetwork:
    """The current network (``model``) of a run, with its optimiser (``trainer``).

    network: (name, options) of the architecture.
    data: the real images.
    strategy: provides the compiled functions, also for calls from several threads.
    """

    def __init__(
        self,
        network: tuple[str, dict[str, Any]],
        data: LabeledImages,
        info: DatasetInfo,
        settings: DistillParams,
        seed: int,
        strategy: Strategy,
    ) -> None:
        self.network, self.data, self.info, self.settings = network, data, info, settings
        self.seed, self.strategy = seed, strategy
        # The order in which all networks of the run see the real images; each inner iteration has its place in it.
        self._order = EndlessPass(len(data), settings.network_batch, seed, "network-order")

    def renew(self, outer: int) -> None:
        """Build the network of an outer iteration."""
        self.model = self._build("network", outer)
        settings = network_settings(self.settings, self.info)
        self.trainer = Trainer(self.model, self.info, settings, self.strategy.kernels)

    def _build(self, *purpose: str | int) -> nn.Module:
        name, options = self.network
        network = build(name, self.info, generator(self.seed, *purpose), options)
        return self.strategy.kernels.compute.place(network)

    def pretrain(self, outer: int, iteration: int) -> None:
        """Train a fresh network on the real images for ``pretrain_epochs`` passes, with ``train_on: real`` only."""
        if not self.settings.pretrain_epochs or self.settings.train_on != "real":
            return
        order = EndlessPass(len(self.data), self.settings.network_batch, self.seed, "pretrain-order", outer)
        steps = max(1, round(self.settings.pretrain_epochs * order.batches))
        self._train_on_real(order, 0, steps, generator(self.seed, "pretrain", iteration))

    def train(self, iteration: int, decode: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Take the ``network_steps`` steps that follow an inner iteration, on the images that ``train_on`` selects.

        ``decode`` returns the distilled images and their labels.
        """
        steps, rng = self.settings.network_steps, generator(self.seed, "train", iteration)
        if self.settings.train_on == "real":
            self._train_on_real(self._order, iteration * steps, steps, rng)
        elif self.settings.train_on == "synthetic":
            with torch.no_grad():
                images, labels = decode()
            size = min(self.settings.network_batch, len(labels))
            self.trainer.train(images, labels, lambda: torch.randperm(len(labels), generator=rng)[:size], steps, rng)

    def _train_on_real(self, order: EndlessPass, first: int, steps: int, rng: torch.Generator) -> None:
        places = count(first)
        self.trainer.train(self.data.images, self.data.labels, lambda: order.at(next(places)), steps, rng)

    def features(self, images: Tensor, normalised: bool = True) -> Tensor:
        """Return the features (n, D) in which real images are clustered (``cluster_features``).

        images: (n, C, H, W), in [0, 1].
        normalised: whether the network sees normalised images.
        """
        kind = self.settings.cluster_features
        if kind == "pixels":
            return images.flatten(1)
        model = self._untrained if kind == "random" else self.model
        info = self.info if normalised else self.info.unbounded()
        return embed(model, images, info, self.strategy.thread_kernels())

    @cached_property
    def _untrained(self) -> nn.Module:
        return self._build("cluster-network")

    def predictions(self, images: Tensor) -> Tensor:
        """Return the current network's logits (n, K) of images (n, C, H, W) in [0, 1]."""
        return predict(self.model, images, self.info, self.strategy.thread_kernels())

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` continues from."""
        return {"model": self.model.state_dict(), "optimizer": self.trainer.optimizer.state_dict()}

    def load_state(self, outer: int, saved: dict[str, Any]) -> None:
        """Continue with the network of outer iteration ``outer`` as ``state`` returned it."""
        self.renew(outer)
        self.model.load_state_dict(saved["model"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
