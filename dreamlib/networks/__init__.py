"""Network families by name. Adding one = adding one file here that registers a frozen dataclass of options.

A family's ``build(info)`` returns an ``nn.Module`` whose ``forward`` gives (N, K) logits and whose ``features`` gives
(N, D) embeddings of normalised (N, C, H, W) images. Files whose name starts with an underscore hold shared parts.
"""

import importlib
import pkgutil
from typing import Protocol

import torch
from torch import nn

from dreamlib._engine.registry import Registry, configured
from dreamlib.data.types import DatasetInfo


class NetworkFamily(Protocol):
    """A frozen dataclass of options that can build its network for a data set."""

    def build(self, info: DatasetInfo) -> nn.Module:
        """A network for these images and classes, initialised from torch's default CPU generator."""
        ...


NETWORKS: Registry[type[NetworkFamily]] = Registry("network")


def build(name: str, info: DatasetInfo, rng: torch.Generator, options: dict | None = None) -> nn.Module:
    """A freshly initialised network for a data set, on the CPU, in float32, every random number from ``rng``.

    Weights are made on the CPU whatever device they move to, so that a seed is one network everywhere; the global
    generators are left as found. Raises UnknownNameError for an unknown name or option, ValueError for an option out of
    range or images that are too small for the network.

    >>> info = DatasetInfo("toy", ("a", "b"), channels=1, size=8, mean=(0.0,), std=(1.0,))
    >>> network = build("convnet", info, torch.Generator().manual_seed(0), {"width": 16})
    >>> network(torch.zeros(5, 1, 8, 8)).shape, network.features(torch.zeros(5, 1, 8, 8)).shape
    (torch.Size([5, 2]), torch.Size([5, 64]))
    """
    recipe = configured(NETWORKS[name], options or {}, f"network '{name}'")
    seed = torch.randint(2**62, (), generator=rng, device=rng.device).item()
    # Not torch.manual_seed: that would also seed every GPU's generator, which fork_rng(devices=[]) does not restore.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return recipe.build(info)


for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
