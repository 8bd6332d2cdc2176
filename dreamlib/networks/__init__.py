"""Network families by name, one per module of this package; importing the package imports and registers all of them.

To add a family, add a module with a frozen dataclass of options, decorated with ``@NETWORKS.register(name)``. Its
``build(info)`` returns an ``nn.Module`` that maps normalised images (N, C, H, W) to logits (N, K) by ``forward`` and to
features (N, D) by ``features``. Modules whose name starts with an underscore hold shared parts.
"""

from typing import Protocol

import torch
from torch import nn

from dreamlib._engine.registry import Registry, configured, import_modules
from dreamlib.data.types import DatasetInfo


class NetworkFamily(Protocol):
    """A frozen dataclass of options that builds a network for a data set."""

    def build(self, info: DatasetInfo) -> nn.Module:
        """Return a network for these images and classes, initialised from torch's default CPU generator."""
        ...


NETWORKS: Registry[type[NetworkFamily]] = Registry("network")


def build(name: str, info: DatasetInfo, rng: torch.Generator, options: dict | None = None) -> nn.Module:
    """Return a newly initialised network for a data set, on the CPU, in float32.

    name, options: registered name of the family and its options.
    info: the data set.
    rng: source of all random numbers. The global generators keep their states, and because weights are initialised on
        the CPU, a seed gives the same network for every device.

    Raise UnknownNameError for an unknown name or option, ValueError for an invalid option or images too small for the
    network.

    >>> info = DatasetInfo("toy", ("a", "b"), channels=1, size=8, mean=(0.0,), std=(1.0,))
    >>> network = build("convnet", info, torch.Generator().manual_seed(0), {"width": 16})
    >>> network(torch.zeros(5, 1, 8, 8)).shape, network.features(torch.zeros(5, 1, 8, 8)).shape
    (torch.Size([5, 2]), torch.Size([5, 64]))
    """
    family = configured(NETWORKS[name], options or {}, f"network '{name}'")
    seed = torch.randint(2**62, (), generator=rng, device=rng.device).item()
    # torch.manual_seed would also seed the GPUs' generators, which fork_rng(devices=[]) does not restore.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return family.build(info)


import_modules(__name__, __path__)
