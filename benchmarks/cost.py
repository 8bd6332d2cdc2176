"""What a DREAM iteration would take with more classes, larger images and workers: modelled from counted operations.

A ConvNet's operations on a meta device, times how often matching, training and clustering pass an image through it,
over the throughput that benchmarks/results.json measured of each. Nothing here has been run at these sizes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.work import INFO
from dreamlib.data.types import DatasetInfo
from dreamlib.networks import build
from dreamlib.networks.convnet import with_torchs_layers
from pipeline.report.tables import markdown

REAL, IPC, FACTOR, SYNTHETIC = 128, 10, 2, 128
INTERVAL, NETWORK_STEPS = 10, 4  # DREAM's: inner iterations between clusterings, training steps in each
POOL = 384  # images a class that enter a clustering, as in the quick budget of params.yaml
START_STEPS = 30  # at most so many of k-means for a start, which is not what is compared
WORKERS = (1, 2, 8)
ITERATIONS = 1000


@dataclass(frozen=True)
class Size:
    """A data set's name, classes and side in pixels."""

    name: str
    classes: int
    side: int


SIZES = (
    Size("CIFAR-10", 10, 32),
    Size("CIFAR-100", 100, 32),
    Size("Tiny-ImageNet", 200, 64),
    Size("ImageNet-1K", 1000, 64),
    Size("ImageNet-1K", 1000, 128),
)


@cache
def forward_operations(classes: int, channels: int, side: int) -> int:
    """Floating-point operations of one image's pass through the literature's ConvNet for that side.

    >>> forward_operations(10, 1, 28) // 10**6  # 1→128, 128→128, 128→128 maps of 32², 16², 8², and a linear layer
    96
    """
    names, statistics = tuple(map(str, range(classes))), (0.5,) * channels
    info = DatasetInfo("any", names, channels, side, statistics, statistics)
    network = with_torchs_layers(build("convnet", info, torch.Generator().manual_seed(0), {})).to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, side, side, device="meta"))
    return counter.get_total_flops()


def kmeans_operations(images: int, clusters: int, features: int) -> int:
    """Of ten iterations: distances as a matrix product, sums of members by adding.

    >>> kmeans_operations(512, 128, 2048)  # 10 · 512 · 2048 · (2 · 128 + 1)
    2694840320
    """
    return 10 * images * features * (2 * clusters + 1)


def passes(result: dict[str, Any]) -> tuple[float, float]:
    """How many forward passes' operations a real and a synthetic image cost in matching, from the counted rows."""
    rows, one = {row["work"]: row for row in result["rows"]}, forward_operations(INFO.num_classes, 1, INFO.size)
    few, many = (rows[f"matching, ipc 1, {real} real"]["operations"] / INFO.num_classes / one for real in (64, 128))
    real = (many - few) / (128 - 64)
    return real, (many - 128 * real) / 4


def throughput(result: dict[str, Any], work: str) -> float:
    """Operations a second the library reached in a row of the measurements."""
    row = next(row for row in result["rows"] if row["work"] == work)
    return row["operations"] / row["fast_s"]


def iteration_seconds(result: dict[str, Any], size: Size, workers: int) -> dict[str, float]:
    """Seconds of matching, clustering and network training in an iteration, each worker as fast as the measured one.

    Workers share the classes of the first two; each trains the network.
    """
    one, (real, synthetic) = forward_operations(size.classes, 3, size.side), passes(result)
    share = -(-size.classes // workers)  # the worker with the most classes
    images = min(IPC * FACTOR**2, SYNTHETIC)
    features = 128 * 4 * 4 if size.side >= 32 else 128 * (size.side // 8) ** 2
    clustering = (POOL * one + kmeans_operations(POOL, REAL, features)) / INTERVAL
    rates = {
        "matching": throughput(result, "matching, ipc 10, 128 real"),
        "clustering": throughput(result, f"clustering a class into 128, pool {POOL}"),
        "network": throughput(result, "training, 5 steps of 128"),
    }
    operations = {
        "matching": share * (REAL * real + images * synthetic) * one,
        "clustering": share * clustering,
        "network": NETWORK_STEPS * 128 * 3 * one,
    }
    return {what: operations[what] / rates[what] for what in rates}


def costs(result: dict[str, Any]) -> str:
    """The modelled table, in Markdown."""
    real, synthetic = passes(result)
    rows = []
    for size in SIZES:
        hours = [sum(iteration_seconds(result, size, n).values()) * ITERATIONS / 3600 for n in WORKERS]
        one = forward_operations(size.classes, 3, size.side)
        name = f"{size.name}: {size.classes}, {size.side} px"
        rows.append((name, f"{one / 1e6:,.0f} · 10⁶", *(f"{h:,.1f}" for h in hours)))
    return (
        f"Modelled, not run, for ipc {IPC}, factor {FACTOR}, {REAL} real images per class, {NETWORK_STEPS} network "
        f"steps of 128, and a clustering of {POOL} images per class every {INTERVAL} iterations. In matching a real "
        f"image costs {real:.1f} forward passes and a synthetic one {synthetic:.1f} (counted). Operations are divided "
        "by the throughput of the first benchmark table. Every worker is as fast as that machine, and sums over "
        "workers cost nothing.\n\n"
        + markdown(("classes, side", "operations of an image", *map(_workers, WORKERS)), rows)
    )


def _workers(count: int) -> str:
    return f"hours per {ITERATIONS:,} iterations, {count} worker{'s' if count > 1 else ''}"
