"""Training on distilled sets beside training on all the data: ``python -m pipeline.studies.training_cost``."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from dreamlib._engine.files import write_atomically
from dreamlib.evaluation import train_settings
from dreamlib.training.augment import augmentation_for
from dreamlib.training.trainer import TrainSettings
from pipeline.launch_notebook import exit_status, restart_prepared
from pipeline.params import CostParams, read_claims
from pipeline.project import Project, Setting
from pipeline.stages.distillation import read_set
from pipeline.studies.batch_gradients import FOLDER, STUDY
from pipeline.studies.cost_measures import energy_joules, operations_per_image, stored_bytes, watched_training

METHOD = "dream"
FULL = "all training images"


def run_cost(project: Project, how: CostParams) -> pd.DataFrame:
    """Train ``how.repeats`` networks on DREAM's set of the first seed at each ipc, and as many on all training images.

    Sets are trained on by the study's own evaluation protocol, the full data at the same rate, momentum and
    augmentation, without decay. Accuracy is on the validation images. Writes results/claims/cost.csv (data, ipc,
    repeat, steps, images seen, operations, stored bytes, accuracy); seconds and joules go to the run's note.
    """
    began, each = time.perf_counter(), operations_per_image(project.network, project.info)
    rows, seconds, joules = [], {}, {}
    for training in _trainings(project, how):
        # The first network of a shape pays for its compilation: one that is not counted pays it beforehand.
        list(training.watch(project, seed=0, points=(1,)))
        for repeat in range(how.repeats):
            for found in training.watch(project, seed=repeat, points=training.points):
                key = f"{training.name}, step {found['step']}, network {repeat}"
                seconds[key] = found["seconds"]
                if found["joules"] is not None:
                    joules[key] = found["joules"]
                rows.append(
                    {"data": training.name, "ipc": training.ipc, "repeat": repeat}
                    | {"step": found["step"], "seen": found["seen"], "operations": found["seen"] * each}
                    | {"stored_bytes": training.stored_bytes, "accuracy": found["accuracy"]}
                )
    table = pd.DataFrame(rows)
    write_atomically(project.root / "results" / FOLDER / "cost.csv", table.to_csv(index=False).encode())
    measured = {"training_s": seconds} | ({"joules": joules} if energy_joules() is not None else {})
    project.note("cost", {"total": time.perf_counter() - began}, **measured)
    return table


@dataclass(frozen=True)
class _Training:
    """One set of images to train on, and how; ipc 0 is all of them."""

    name: str
    ipc: int
    images: Tensor
    labels: Tensor
    settings: TrainSettings
    points: tuple[int, ...]
    decay: str
    clean_share: float
    last_layer_penalty: float  # 0: as trained
    stored_bytes: int

    def watch(self, project: Project, seed: int, points: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """See ``watched_training``; accuracy on the validation images."""
        against = project.split("validation").to(project.compute.device)
        return watched_training(
            self.images, self.labels, against, project.info, project.network, self.settings, project.compute,
            points=points, seed=seed, decay=self.decay, clean_share=self.clean_share,
            last_layer_penalty=self.last_layer_penalty,
        )  # fmt: skip


def _trainings(project: Project, how: CostParams) -> Iterator[_Training]:
    p, device = project.params, project.compute.device
    for ipc in p.ipc:
        synthetic, protocol = read_set(project, Setting(METHOD, ipc, p.seeds[0])), p.evaluation(METHOD, ipc)
        images, labels = synthetic.to(device).decode()
        settings = train_settings(project.info, protocol, synthetic)
        steps = (protocol.epochs * -(-len(labels) // settings.batch),)
        size = stored_bytes(synthetic)
        phases = protocol.decay, protocol.clean_share, protocol.last_layer_penalty * (protocol.last_layer == "ridge")
        yield _Training(f"{METHOD} ipc {ipc}", ipc, images, labels, settings, steps, *phases, size)
    train, protocol = project.split("train"), p.evaluation(METHOD, p.ipc[0])
    augmentation = augmentation_for(project.info, protocol.augmentation, protocol.augmentation_mode)
    usual = TrainSettings(
        how.batch, protocol.lr, protocol.momentum, protocol.weight_decay, augmentation, protocol.cutmix
    )
    placed, size = train.to(device), stored_bytes(train)
    yield _Training(FULL, 0, placed.images, placed.labels, usual, tuple(how.points), "none", 0.0, 0.0, size)


if __name__ == "__main__":
    restart_prepared("pipeline.studies.training_cost")
    sys.exit(exit_status(lambda: run_cost(Project.open(study=STUDY), read_claims().cost)))
