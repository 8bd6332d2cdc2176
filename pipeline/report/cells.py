"""Small tables and sentences that the notebooks show: settings, losses, costs, provenance."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from ruamel.yaml import YAML
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.data import create
from dreamlib.data.base import PublishedDataset
from dreamlib.distill import DistillResult
from dreamlib.sampling.representatives import ClassClusters
from dreamlib.settings import DistillParams, digest
from pipeline.params import Params
from pipeline.project import Project, Setting
from pipeline.report.record import cost_table
from pipeline.report.tables import markdown


def settings_table(settings: BaseModel) -> pd.DataFrame:
    """Return the values of a settings model, one row each."""
    return pd.DataFrame({"value": _values(settings)}).rename_axis("setting")


def method_settings(params: Params, method: str, ipc: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the settings that make a method and those that it shares with the budget, as two tables.

    The first holds what the method sets and what differs from the budget's default, with that default beside it.
    """
    settings = params.distillation(method, ipc)
    defaults = params.model_copy(update={"method": {method: {}}}).distillation(method, ipc)
    entry = params.method[method]
    named = {*entry, *(entry.get(params.budget) or {})}
    table = pd.DataFrame({method: _values(settings), "budget's default": _values(defaults)}).rename_axis("setting")
    own = table.index.isin(named) | (table[method] != table["budget's default"])
    return table[own], table[~own][[method]]


def _values(settings: BaseModel) -> dict[str, str]:
    values = settings.model_dump()
    return {
        key: ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        for key, value in values.items()
    }


def folded(table: pd.DataFrame, summary: str) -> str:
    """Return a table as HTML that shows only its summary until it is opened."""
    return f"<details><summary>{summary}</summary>{table.to_html()}</details>"


def distillation_answer(setting: Setting, result: DistillResult) -> str:
    """Return what a distillation made of its images, in two sentences of Markdown."""
    synthetic = result.synthetic
    stored = (
        f"**{setting.name}: {synthetic.stored_floats:,} stored numbers decode into {len(synthetic.decode()[1])} "
        f"training images** ({synthetic.ipc} stored per class, factor {synthetic.factor}). "
    )
    if not result.history:
        return stored + "This is a baseline: its real images stay as they are."
    losses = loss_table(result)["loss"]
    count = max(1, len(losses) // 10)
    return stored + (
        f"In {len(losses)} inner iterations the matching loss changed from {losses.iloc[0]:.3g} to "
        f"{losses.tail(count).mean():.3g} (mean over classes and over the last {count} iterations)."
    )


def loss_table(result: DistillResult) -> pd.DataFrame:
    """Return the matching loss per inner iteration: iteration, loss, and the name of the only line."""
    return pd.DataFrame(result.history, columns=["iteration", "loss"]).assign(line="matching loss")


def small_class_note(project: Project, settings: DistillParams) -> str:
    """Return a warning where a class has fewer images than ``real_batch``; empty where none has."""
    counts = project.split("train").labels.bincount()
    fewest, smallest = int(counts.min()), project.info.classes[int(counts.argmin())]
    if fewest >= settings.real_batch or not settings.outer_iterations * settings.inner_iterations:
        return ""
    return (
        f"**Note:** `real_batch` is {settings.real_batch}, but class {smallest} has {fewest} training images: its "
        "batch is all of them in every iteration, whatever the sampler. A smaller `real_batch` leaves it a choice."
    )


def two_dimensions(clusters: ClassClusters, batch: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a class's features on their first two principal components (n, 2), and the rows to mark in them.

    Marked are the representatives and as many random rows, at most ``batch``.
    """
    from sklearn.decomposition import PCA  # here, because one notebook alone pays for the import

    features = clusters.features.cpu()
    solver = "covariance_eigh" if features.shape[1] < 256 else "randomized"
    points = PCA(2, svd_solver=solver, random_state=0).fit_transform(features.numpy())
    place = {int(row): index for index, row in enumerate(clusters.members.tolist())}
    chosen = np.array([place[int(row)] for row in clusters.representatives.tolist()])
    rng = generator(seed, "shown-random-batch")
    random = torch.randperm(len(features), generator=rng)[: min(batch, len(chosen))].numpy()
    return points, {"representatives": chosen, "as many random images": random}


def random_images(images: Tensor, rows: Tensor, count: int, seed: int) -> Tensor:
    """Return ``count`` random images among ``rows``, to compare with the representatives."""
    order = torch.randperm(len(rows), generator=generator(seed, "shown-random-batch"))[:count]
    return images[rows[order.to(rows.device)]]


def study_costs(record: dict[str, Any]) -> str:
    """Return a sentence on the time and memory that a study took, from its record."""
    if not record:
        return "The cost of this run is not on record."
    table = cost_table(record)
    kinds = table.assign(kind=table.stage.str.split("-").str[0]).groupby("kind", sort=False)["seconds"].sum()
    listed = ", ".join(f"{kind} {seconds:,.0f} s" for kind, seconds in kinds.items())
    return (
        f"The study took {listed}: {kinds.sum() / 60:.0f} minutes in all, without the start of its processes, on "
        f"{table.device.iloc[0]}. Its largest memory was {table['peak memory (MiB)'].max():,.0f} MiB."
    )


def data_version(project: Project) -> str:
    """Return how the version of the data is fixed: by data.dvc, by the MD5s of published files, or not at all."""
    p, path = project.params, project.root / "data.dvc"
    outs = YAML(typ="safe", pure=True).load(path)["outs"] if path.is_file() else []
    if f"{p.data.directory}/{p.dataset}" in [out["path"] for out in outs]:
        return "pinned by data.dvc"
    dataset = create(p.dataset, p.data.options)
    if isinstance(dataset, PublishedDataset):
        return f"published files with known MD5s, from {dataset.sources()[0].title}"
    return "not pinned: the files may change, and only this hash shows it"


def provenance(project: Project, stage: str, info: dict[str, Any] | None = None) -> str:
    """Return what the numbers of a notebook come from, as a Markdown table: stage, data, parameters, device, versions.

    It holds no time, commit or hash of code, so that the committed text changes only with a result: dvc.lock has the
    hash of the code, results/record.json the times.
    """
    p = project.used_params
    study = f" and the study `{project.study}`" if project.study else ""
    rows = {
        "stage": f"`{stage}`",
        "data": f"{p.dataset}, hash `{project.data_hash[:16]}`, {data_version(project)}",
        "parameters": (
            f"params.yaml{study}, budget `{p.budget}`, hash `{(info or {}).get('parameter_hash') or digest(p)}`"
        ),
        "device": ", ".join(f"{k} {v}" for k, v in project.compute.describe().items() if k != "python"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torchvision", "numpy", "scikit-learn", "dvc")),
    }
    return markdown(("", ""), rows.items())
