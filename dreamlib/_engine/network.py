"""Optional attributes of a network besides ``forward`` and ``features``, with defaults for plain modules."""

from typing import ClassVar

from torch import nn


class Network(nn.Module):
    """Base class for networks that declare more than a plain ``nn.Module``, for which these defaults apply.

    ``compiles``: whether ``torch.compile`` saves more time on this network than it takes. ``feature_channels``: the
    number of channels C of features that are a flattened (C, h, w) map, or None if there is no such map.

    >>> network_traits(nn.Linear(2, 2)).compiles, network_traits(Network()).feature_channels
    (False, None)
    """

    compiles: ClassVar[bool] = False
    feature_channels: int | None = None


_PLAIN = Network()


def network_traits(network: nn.Module) -> Network:
    """Return the network itself if it is a ``Network``, else one with the defaults."""
    return network if isinstance(network, Network) else _PLAIN
