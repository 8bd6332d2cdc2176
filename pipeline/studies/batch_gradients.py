"""Kinds of real batches measured while one network a seed trains: ``python -m pipeline.studies.batch_gradients``."""

import sys
import time

import pandas as pd
import torch
from sklearn.decomposition import PCA

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.files import write_atomically
from dreamlib._engine.seeding import generator
from dreamlib.data.types import LabeledImages
from dreamlib.networks import build
from dreamlib.settings import DistillParams
from dreamlib.training.matched_network import network_settings
from dreamlib.training.trainer import Trainer, compiled_network
from pipeline.launch_notebook import exit_status, restart_prepared
from pipeline.params import BatchesParams, read_claims
from pipeline.project import Project
from pipeline.studies.batch_measures import KINDS, BatchStudy, pooled

STUDY = "claims_curves"  # whose data, network, seeds and settings are used
FOLDER = "claims"


def run_batches(project: Project, how: BatchesParams) -> pd.DataFrame:
    """Measure every kind of batch at every point, class and seed; see ``BatchStudy.measure``.

    Writes results/claims/batches.csv (every number) and results/claims/picture.csv: the images of class ``how.shown``
    in the first seed's network at the last point, on their first two principal components, with what each kind picks.
    """
    began, tables = time.perf_counter(), []
    settings = project.params.distillation("dream", project.params.ipc[0])
    data = project.split("train").to(project.compute.device)
    for seed in project.params.seeds:
        images, rows = pooled(data, how.pool, seed)
        kernels = compiled_network(project.network, project.info, project.compute)
        study = BatchStudy(images, project.info, kernels, settings.real_batch, how.draws, seed)
        trainer, step = _trainer(project, settings, kernels, seed), 0
        for point in sorted(how.points):
            while step < point:
                _train_step(trainer, data, settings, seed, step)
                step += 1
            tables.append(study.measure(trainer.network, point).assign(seed=seed))
        if seed == project.params.seeds[0]:
            picture = _picture(study, trainer, rows, how.shown, max(how.points))
    table, folder = pd.concat(tables, ignore_index=True), project.root / "results" / FOLDER
    for name, found in (("batches", table), ("picture", picture)):
        write_atomically(folder / f"{name}.csv", found.to_csv(index=False, float_format="%.6g").encode())
    project.note("batches", {"total": time.perf_counter() - began})
    return table


def _trainer(project: Project, settings: DistillParams, kernels: CompiledNetwork, seed: int) -> Trainer:
    """A network as the distillation trains its own."""
    name, options = project.network
    network = project.compute.place(build(name, project.info, generator(seed, "batches-network"), options))
    return Trainer(network, project.info, network_settings(settings, project.info), kernels)


def _train_step(trainer: Trainer, data: LabeledImages, settings: DistillParams, seed: int, step: int) -> None:
    rng = generator(seed, "batches-train", step)
    rows = torch.randint(len(data), (settings.network_batch,), generator=rng).to(data.labels.device)
    trainer.step(data.images[rows], data.labels[rows], rng)


def _picture(study: BatchStudy, trainer: Trainer, rows: torch.Tensor, label: int, point: int) -> pd.DataFrame:
    features, logits = study.features(trainer.network)
    members = study.data.of_class(label)
    plane = PCA(2, svd_solver="full", random_state=0).fit_transform(features[members].double().cpu().numpy())
    table = pd.DataFrame({"row": rows.to(members.device)[members].tolist(), "x": plane[:, 0], "y": plane[:, 1]})
    for kind in KINDS:
        picked = torch.zeros(len(members), dtype=torch.long)
        picked[study.batches(kind, label, features, logits, point)[0].cpu()] = 1
        table[kind] = picked.numpy()
    return table


if __name__ == "__main__":
    restart_prepared("pipeline.studies.batch_gradients")
    sys.exit(exit_status(lambda: run_batches(Project.open(study=STUDY), read_claims().batches)))
