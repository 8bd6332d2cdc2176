"""The cost of training on a distilled set and on all images: operations, seconds, bytes, and joules if measured.

``python -m pipeline.studies.training_cost`` measures both for the study of DREAM's claims.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dreamlib._engine.compute import Compute
from dreamlib._engine.files import write_atomically
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.evaluation import train_settings
from dreamlib.networks import build
from dreamlib.networks.convnet import with_torchs_layers
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import accuracy, fit_last_layer, predict
from dreamlib.training.schedules import SCHEDULES, Schedule, constant_lr
from dreamlib.training.trainer import Trainer, TrainSettings, compiled_network
from pipeline.failures import exit_status
from pipeline.launch_notebook import restart_prepared
from pipeline.params import CostParams, read_claims
from pipeline.project import Project, Setting
from pipeline.report.results import CLAIMS_FOLDER, MEASURED_STUDY
from pipeline.stages.distillation import read_set

METHOD = "dream"
FULL = "all training images"
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")  # the processor's energy meter, on Intel and AMD


# ---- the measures, which need only dreamlib ---------------------------------------------------------------------


def operations_per_image(network: tuple[str, dict[str, Any]], info: DatasetInfo) -> int:
    """Return the floating-point operations of one training step, forward and backward, per image.

    torch's FlopCounterMode counts convolutions and matrix products, which are nearly all of them; a multiplication with
    its addition counts as two.
    """
    count = 2  # a step of two images is counted; the work grows in proportion
    model = with_torchs_layers(build(network[0], info, torch.Generator().manual_seed(0), network[1])).train()
    with FlopCounterMode(display=False) as counter:
        images = torch.zeros(count, info.channels, info.size, info.size)
        F.cross_entropy(model(images), torch.zeros(count, dtype=torch.long)).backward()
    return counter.get_total_flops() // count


def stored_bytes(data: SyntheticSet | LabeledImages) -> int:
    """Return the bytes of the images: four for each stored float of a set, one for each pixel of published images."""
    return 4 * data.stored_floats if isinstance(data, SyntheticSet) else data.images.numel()


def energy_joules(meter: Path = RAPL) -> float | None:
    """Return the processor's running energy counter, or None if it has none; only differences are meaningful."""
    try:
        return int(meter.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def training_curve(
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
    schedule: Schedule = constant_lr,
    clean_share: float = 0.0,
    last_layer_penalty: float = 0.0,
) -> Iterator[dict[str, float | None]]:
    """Train one fresh network and evaluate it on ``against`` after each number of steps in ``points``.

    Yield steps, images seen, accuracy, and the seconds and joules (None without a meter) of training, excluding the
    evaluation. Batches are drawn epoch by epoch, as in ``fit``; ``schedule`` and ``clean_share`` are the protocol's,
    over the epochs up to the last point. With ``last_layer_penalty`` above 0, the evaluated network is a copy whose
    last layer is fitted by ridge regression (see ``fit_last_layer``), which counts as training.
    """
    cost_seed = derive(seed, "cost")
    kernels = compiled_network(network, info, compute)
    model = compute.place(build(network[0], info, generator(cost_seed, "network"), network[1]))
    trainer = Trainer(model, info, settings, kernels)
    per_epoch = -(-len(labels) // settings.batch)
    epochs = -(-max(points) // per_epoch)
    step = images_seen = 0
    seconds, joules = 0.0, 0.0 if energy_joules() is not None else None
    began, meter = time.perf_counter(), energy_joules()
    for epoch in range(epochs):
        trainer.start_epoch(epoch, epochs, schedule, clean_share)
        rng = generator(cost_seed, "fit", epoch)
        for rows in torch.randperm(len(labels), generator=rng).to(labels.device).split(settings.batch):
            loss = trainer.step(images[rows], labels[rows], rng)
            step, images_seen = step + 1, images_seen + len(rows)
            if step in points:
                evaluated = model
                if last_layer_penalty:
                    evaluated = copy.deepcopy(model)
                    fit_last_layer(evaluated, images, labels, info, kernels, last_layer_penalty)
                float(loss)  # GPU work is asynchronous: wait for it before reading the clock
                seconds += time.perf_counter() - began
                joules = None if joules is None else joules + (energy_joules() or 0.0) - (meter or 0.0)
                score = accuracy(predict(evaluated, against.images, info, kernels), against.labels)
                yield {"step": step, "seen": images_seen, "accuracy": score, "seconds": seconds, "joules": joules}
                began, meter = time.perf_counter(), energy_joules()


# ---- the study --------------------------------------------------------------------------------------------------


def run_cost(project: Project, plan: CostParams) -> pd.DataFrame:
    """Train ``plan.repeats`` networks on DREAM's set of the first seed at each ipc, and as many on all training images.

    Training on a set follows the study's evaluation protocol; training on all images has the same momentum, weight
    decay, augmentation and initial learning rate, which stays constant. Accuracy is on the validation images.

    Write results/claims/cost.csv (data, ipc, repeat, steps, images seen, operations, stored bytes, accuracy); seconds
    and joules are recorded as timings.
    """
    began, per_image = time.perf_counter(), operations_per_image(project.network, project.info)
    rows, seconds, joules = [], {}, {}
    for training in _trainings(project, plan):
        # Warm-up: the first network of a shape includes its compilation.
        list(training.watch(seed=0, points=(1,)))
        for repeat in range(plan.repeats):
            for point in training.watch(seed=repeat, points=training.points):
                key = f"{training.name}, step {point['step']}, network {repeat}"
                seconds[key] = point["seconds"]
                if point["joules"] is not None:
                    joules[key] = point["joules"]
                rows.append(
                    {"data": training.name, "ipc": training.ipc, "repeat": repeat}
                    | {"step": point["step"], "seen": point["seen"], "operations": point["seen"] * per_image}
                    | {"stored_bytes": training.stored_bytes, "accuracy": point["accuracy"]}
                )
    table = pd.DataFrame(rows)
    write_atomically(project.root / CLAIMS_FOLDER / "cost.csv", table.to_csv(index=False).encode())
    measured = {"training_s": seconds} | ({"joules": joules} if energy_joules() is not None else {})
    project.record_timings("cost", {"total": time.perf_counter() - began}, **measured)
    return table


@dataclass(frozen=True)
class _Training:
    """A training set (ipc 0: all images) and ``watch``, its ``training_curve`` without seed and points."""

    name: str
    ipc: int
    points: tuple[int, ...]
    stored_bytes: int
    watch: Callable[..., Iterator[dict[str, Any]]]


def _trainings(project: Project, plan: CostParams) -> Iterator[_Training]:
    p, device = project.params, project.compute.device
    validation = project.split("validation").to(device)
    shared = {"against": validation, "info": project.info, "network": project.network, "compute": project.compute}
    for ipc in p.ipc:
        synthetic, protocol = read_set(project, Setting(METHOD, ipc, p.seeds[0])), p.evaluation(METHOD, ipc)
        images, labels = synthetic.to(device).decode()
        settings = train_settings(project.info, protocol, synthetic)
        watch = partial(
            training_curve, images, labels, settings=settings, schedule=SCHEDULES[protocol.decay],
            clean_share=protocol.clean_share,
            last_layer_penalty=protocol.last_layer_penalty if protocol.last_layer == "ridge" else 0.0, **shared,
        )  # fmt: skip
        last = protocol.epochs * -(-len(labels) // settings.batch)
        yield _Training(f"{METHOD} ipc {ipc}", ipc, (last,), stored_bytes(synthetic), watch)
    train, protocol = project.split("train"), p.evaluation(METHOD, p.ipc[0])
    augmentation = augmentation_for(project.info, protocol.augmentation, protocol.augmentation_mode)
    settings = TrainSettings(
        plan.batch, protocol.lr, protocol.momentum, protocol.weight_decay, augmentation, protocol.cutmix
    )
    placed = train.to(device)
    watch = partial(training_curve, placed.images, placed.labels, settings=settings, **shared)
    yield _Training(FULL, 0, tuple(plan.points), stored_bytes(train), watch)


if __name__ == "__main__":
    restart_prepared("pipeline.studies.training_cost")
    sys.exit(exit_status(lambda: run_cost(Project.open(study=MEASURED_STUDY), read_claims().cost)))
