"""What training on a set costs beside training on all the data: operations, seconds, bytes, joules where measured."""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import accuracy, fit_last_layer, predict
from dreamlib.training.schedules import SCHEDULES
from dreamlib.training.trainer import Trainer, TrainSettings, compiled_network

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")  # the processor's own meter, on Intel and AMD alike


def operations_per_image(network: tuple[str, dict[str, Any]], info: DatasetInfo) -> int:
    """Floating-point operations of one training step, forward and backward, for each of its images.

    Counted by torch's FlopCounterMode: a multiplication with its addition is two; convolutions and matrix products
    only, which are nearly all of it.
    """
    count = 2  # the counter sees a step of two images; the work grows in proportion
    model = build(network[0], info, torch.Generator().manual_seed(0), network[1]).train()
    with FlopCounterMode(display=False) as counter:
        images = torch.zeros(count, info.channels, info.size, info.size)
        F.cross_entropy(model(images), torch.zeros(count, dtype=torch.long)).backward()
    return counter.get_total_flops() // count


def stored_bytes(data: SyntheticSet | LabeledImages) -> int:
    """Bytes that the images take: four for every stored float of a set, one for every pixel of published images."""
    return 4 * data.stored_floats if isinstance(data, SyntheticSet) else data.images.numel()


def energy_joules(meter: Path = RAPL) -> float | None:
    """The processor's running energy count, or None where the machine does not show it; take differences."""
    try:
        return int(meter.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def watched_training(
    images: Tensor,
    labels: Tensor,
    against: LabeledImages,
    info: DatasetInfo,
    network: tuple[str, dict[str, Any]],
    settings: TrainSettings,
    compute: Compute,
    *,
    points: Sequence[int],
    seed: int,
    decay: str = "none",
    clean_share: float = 0.0,
    last_layer_penalty: float = 0.0,
) -> Iterator[dict[str, float | None]]:
    """Train one fresh network and ask it on ``against`` after each number of steps in ``points``.

    Yields steps, images seen, accuracy, and the seconds and joules (None without a meter) of training alone, asking
    left out. Batches are drawn as ``fit`` draws them, epoch by epoch; ``decay`` and ``clean_share`` are the protocol's,
    over the epochs up to the last point. With a ``last_layer_penalty`` above 0 a copy is asked whose last layer is
    fitted by ridge regression (see ``fit_last_layer``), which counts as training.
    """
    own = derive(seed, "cost")
    kernels = compiled_network(network, info, compute)
    model = compute.place(build(network[0], info, generator(own, "network"), network[1]))
    trainer = Trainer(model, info, settings, kernels)
    per_epoch = -(-len(labels) // settings.batch)
    epochs = -(-max(points) // per_epoch)
    step = seen = 0
    seconds, joules = 0.0, 0.0 if energy_joules() is not None else None
    began, meter = time.perf_counter(), energy_joules()
    for epoch in range(epochs):
        trainer.enter(epoch, epochs, SCHEDULES[decay], clean_share)
        rng = generator(own, "fit", epoch)
        for rows in torch.randperm(len(labels), generator=rng).to(labels.device).split(settings.batch):
            loss = trainer.step(images[rows], labels[rows], rng)
            step, seen = step + 1, seen + len(rows)
            if step in points:
                asked = model
                if last_layer_penalty:
                    asked = copy.deepcopy(model)
                    fit_last_layer(asked, images, labels, info, kernels, last_layer_penalty)
                float(loss)  # the clock waits for a GPU's work
                seconds += time.perf_counter() - began
                joules = None if joules is None else joules + (energy_joules() or 0.0) - (meter or 0.0)
                score = accuracy(predict(asked, against.images, info, kernels), against.labels)
                yield {"step": step, "seen": seen, "accuracy": score, "seconds": seconds, "joules": joules}
                began, meter = time.perf_counter(), energy_joules()
