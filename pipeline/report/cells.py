"""Small tables and sentences the notebooks show: settings, loss histories, provenance."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.distill import DistillResult
from dreamlib.settings import DistillParams, digest
from dreamlib.synthetic.initial import ClassClusters
from pipeline.project import Project, Setting
from pipeline.report.provenance import code_hash
from pipeline.report.record import cost_table
from pipeline.report.tables import markdown


def settings_table(settings: BaseModel) -> pd.DataFrame:
    """The values of a settings model, one row each."""
    values = {key: ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
              for key, value in settings.model_dump().items()}  # fmt: skip
    return pd.DataFrame({"value": values}).rename_axis("setting")


def loss_table(result: DistillResult, setting: Setting | None = None) -> pd.DataFrame:
    """The matching loss per inner iteration, with the method's name for a legend."""
    table = pd.DataFrame(result.history, columns=["iteration", "loss"])
    return table.assign(method=setting.method if setting else "matching loss")


def small_class_note(project: Project, how: DistillParams) -> str:
    """A sentence where a class is too small for ``real_batch``: samplers then have little or nothing to choose from."""
    counts = project.split("train").labels.bincount()
    fewest, smallest = int(counts.min()), project.info.classes[int(counts.argmin())]
    if fewest >= how.real_batch or not how.outer_iterations * how.inner_iterations:
        return ""
    return (
        f"**Note:** `real_batch` is {how.real_batch}, but class {smallest} has {fewest} training images: its batch is "
        "all of them in every iteration, whichever sampler is named. A smaller `real_batch` leaves it a choice."
    )


def two_dimensions(clusters: ClassClusters, batch: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A class's features on their first two principal components (n, 2), and rows to mark: representatives, random.

    At most ``batch`` random rows, as many as there are representatives.
    """
    from sklearn.decomposition import PCA  # here, because only one notebook of four pays for importing it

    features = clusters.features.cpu()
    points = PCA(2, svd_solver="covariance_eigh" if features.shape[1] < 256 else "randomized", random_state=0)
    where = {int(row): place for place, row in enumerate(clusters.members.tolist())}
    chosen = np.array([where[int(row)] for row in clusters.representatives.tolist()])
    rng = generator(seed, "shown-random-batch")
    random = torch.randperm(len(features), generator=rng)[: min(batch, len(chosen))].numpy()
    return points.fit_transform(features.numpy()), {"representatives": chosen, "random images, as many": random}


def random_images(images: Tensor, rows: Tensor, count: int, seed: int) -> Tensor:
    """``count`` of the given rows' images at random, to lay beside the representatives."""
    order = torch.randperm(len(rows), generator=generator(seed, "shown-random-batch"))[:count]
    return images[rows[order.to(rows.device)]]


def study_costs(record: dict[str, Any]) -> str:
    """What a study took where it was made, in a sentence; says so when no record of it is kept."""
    if not record:
        return "No cost of this run is recorded; `python -m pipeline.report.record write --study` keeps it."
    table = cost_table(record)
    kinds = table.assign(kind=table.stage.str.split("-").str[0]).groupby("kind", sort=False)["seconds"].sum()
    listed = ", ".join(f"{kind} {seconds:,.0f} s" for kind, seconds in kinds.items())
    return (
        f"The study took {listed}: {kinds.sum() / 60:.0f} minutes in all besides starting its processes, on "
        f"{table.device.iloc[0]}; largest memory {table['peak memory (MiB)'].max():,.0f} MiB."
    )


def provenance(project: Project, stage: str, info: dict[str, Any] | None = None) -> str:
    """The chain behind a notebook's numbers, as a Markdown table: data, parameters, code, versions, device.

    No time and no commit number: this text is committed, and would change with the commit that holds it. Times are in
    results/record.json and in report 04; `git log` of the report names its commit.
    """
    p = project.used_params
    files = "params.yaml and studies.yaml" if project.study else "params.yaml"
    rows = {
        "stage": f"`{stage}` in dvc.yaml",
        "data": f"{p.dataset}, hash `{project.data_hash[:16]}`, pinned by data.dvc",
        "parameters": f"{files}, budget `{p.budget}`, hash `{(info or {}).get('parameter_hash') or digest(p)}`",
        "code": f"dreamlib files of this stage, hash `{code_hash(stage, project.root)}`",
        "device": ", ".join(f"{k} {v}" for k, v in project.compute.describe().items() if k != "python"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torchvision", "numpy", "scikit-learn", "dvc")),
    }
    return markdown(("", ""), rows.items())
