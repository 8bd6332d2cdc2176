"""Small tables and sentences that the notebooks show: settings, losses, accuracies, costs, provenance."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
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
from dreamlib.evaluation import Evaluation
from dreamlib.sampling.representatives import ClassClusters
from dreamlib.settings import DistillParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.params import Params
from pipeline.project import Project, Setting
from pipeline.report.labels import CLASSES_SHOWN, counted
from pipeline.report.record import cost_table
from pipeline.report.tables import code_span, markdown, percent


def settings_table(settings: BaseModel, inherited_ipcs: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Return the values of a settings model, one row each; values from a lower ipc's entry are marked with that ipc."""
    return pd.DataFrame({"value": _values(settings, inherited_ipcs or {})}).rename_axis("setting")


def method_settings(params: Params, method: str, ipc: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the settings that define a method and those that it shares with the budget, as two tables.

    The first has the settings of the method's entry and those that differ from the budget's default, next to that
    default. Values from a lower ipc's entry are marked with that ipc.
    """
    entry = params.method[method]
    named = {*entry, *(entry.get(params.budget) or {})}
    without = params.model_copy(update={"method": {method: {}}})
    values, defaults = (
        _values(p.distillation(method, ipc), p.inherited_ipcs("distillation", method, ipc)) for p in (params, without)
    )
    table = pd.DataFrame({method: values, "budget's default": defaults}).rename_axis("setting")
    of_method = table.index.isin(named) | (table[method] != table["budget's default"])
    return table[of_method], table[~of_method][[method]]


def _values(settings: BaseModel, inherited_ipcs: Mapping[str, int]) -> dict[str, str]:
    """Return the values as text; values from a lower ipc's entry are marked with that ipc.

    inherited_ipcs: key, or options.key → ipc.
    """

    def text(key: str, value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{k}: {text(f'{key}.{k}', v)}" for k, v in value.items())
        return f"{value} (entry of ipc {inherited_ipcs[key]})" if key in inherited_ipcs else str(value)

    return {key: text(key, value) for key, value in settings.model_dump().items()}


def folded(table: pd.DataFrame, summary: str) -> str:
    """Return a table as HTML that shows only its summary until opened."""
    return f"<details><summary>{summary}</summary>{table.to_html()}</details>"


def distillation_answer(setting: Setting, result: DistillResult) -> str:
    """Summarise a distillation in two sentences of Markdown."""
    synthetic = result.synthetic
    stored = (
        f"**{setting.name}: {synthetic.stored_floats:,} stored numbers decode into {len(synthetic.decode()[1])} "
        f"training images** ({synthetic.ipc} stored per class, factor {synthetic.factor}). "
    )
    if not result.history:
        return stored + "This is a baseline: its real images are unchanged."
    losses = loss_table(result)["loss"]
    count = max(1, len(losses) // 10)
    return stored + (
        f"In {len(losses)} inner iterations the matching loss changed from {losses.iloc[0]:.3g} to "
        f"{losses.tail(count).mean():.3g} (mean over classes and over the last {count} iterations)."
    )


def evaluation_answer(setting: Setting, evaluation: Evaluation, synthetic: SyntheticSet, dataset: str) -> str:
    """Return the accuracy of a set in two sentences of Markdown, with its spread over networks if there are several."""
    count, stored = len(evaluation.accuracies), f"The set stores {synthetic.stored_floats:,} numbers."
    epochs = f"after the last of {evaluation.epochs} epochs"
    if count == 1:
        accuracy = f"**{setting.name}: {100 * evaluation.mean:.1f} % test accuracy** on {dataset}"
        return f"{accuracy}, of one network {epochs}: one network shows no spread. {stored}"
    return (
        f"**{setting.name}: {percent(evaluation.mean, evaluation.std)} % test accuracy** on {dataset}, mean ± standard "
        f"deviation over {count} networks with different initial weights, {epochs}. {stored}"
    )


def coverage_by_class(coverage: pd.DataFrame) -> pd.DataFrame:
    """Return the coverage of the first classes as formatted text, one row each.

    coverage: columns class, batch, clusters_hit, nearest_distance
    """
    names = list(dict.fromkeys(coverage["class"]))
    shown = coverage.assign(
        clusters_hit=coverage.clusters_hit.map("{:.0%}".format),
        nearest_distance=coverage.nearest_distance.map("{:.2f}".format),
    )
    table = shown.pivot(index="class", columns="batch", values=["clusters_hit", "nearest_distance"])
    table = table.loc[names[:CLASSES_SHOWN]]
    share = counted(len(table), len(names), "classes")
    return table.rename_axis(index=f"class ({share})" if share else "class")


def loss_table(result: DistillResult) -> pd.DataFrame:
    """Return the matching loss per inner iteration, as columns iteration, loss and line (the legend label)."""
    return pd.DataFrame(result.history, columns=["iteration", "loss"]).assign(line="matching loss")


def small_class_note(project: Project, settings: DistillParams) -> str:
    """Return a warning if a class has fewer images than ``real_batch``; else an empty string."""
    counts = project.split("train").labels.bincount()
    fewest, smallest = int(counts.min()), project.info.classes[int(counts.argmin())]
    if fewest >= settings.real_batch or not settings.outer_iterations * settings.inner_iterations:
        return ""
    return (
        f"**Note:** `real_batch` is {settings.real_batch}, but class {code_span(smallest)} has {fewest} training "
        "images: every batch contains all of them, whichever sampler is used; lower `real_batch` to let it choose."
    )


def two_dimensions(clusters: ClassClusters, batch: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a class's features on their first two principal components (n, 2), and the rows to mark in them.

    Marked are the representatives and as many random rows, at most ``batch``.
    """
    from sklearn.decomposition import PCA  # here, because only one notebook needs the slow import

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
    """Return a sentence with the time and memory that a study took, from its record."""
    if not record:
        return "The cost of this run was not recorded."
    table = cost_table(record)
    kinds = table.assign(kind=table.stage.str.split("-").str[0]).groupby("kind", sort=False)["seconds"].sum()
    listed = ", ".join(f"{kind} {seconds:,.0f} s" for kind, seconds in kinds.items())
    return (
        f"The study took {listed}: {kinds.sum() / 60:.0f} minutes in all, excluding process start-up, on "
        f"{table.device.iloc[0]}. Its peak memory was {table['peak memory (MiB)'].max():,.0f} MiB."
    )


def data_version(project: Project) -> str:
    """Return what pins the version of the data: a .dvc file, the MD5s of published files, or only dvc.lock."""
    p, root = project.params, project.root
    place = root / p.data.directory / p.dataset
    for file in sorted(file for folder in (root, place.parent) for file in folder.glob("*.dvc") if file.is_file()):
        outs = YAML(typ="safe", pure=True).load(file).get("outs", [])
        if place.resolve() in [(file.parent / out["path"]).resolve() for out in outs]:
            return f"pinned by {Path(os.path.relpath(file, root)).as_posix()}"
    dataset = create(p.dataset, p.data.options)
    if isinstance(dataset, PublishedDataset):
        return f"published files with known MD5s, from {dataset.sources()[0].title}"
    return f"not pinned: dvc.lock records {p.data.directory}/{p.dataset} as the stage read it"


def provenance(project: Project, stage: str, info: dict[str, Any] | None = None) -> str:
    """Return the provenance of a notebook's numbers as a Markdown table: stage, data, parameters, device, versions.

    It has no time, commit or hash of code, so that the committed text changes only with a result: dvc.lock has the hash
    of the code, results/record.json the timings.
    """
    p, shared = project.used_params, origin(project)
    study = f" and the study `{project.study}`" if project.study else ""
    rows = {
        "stage": f"`{stage}`",
        "data": shared.pop("data"),
        "parameters": (
            f"params.yaml{study}, budget `{p.budget}`, hash `{(info or {}).get('parameter_hash') or digest(p)}`"
        ),
    }
    return markdown(("", ""), (rows | shared).items())


def origin(project: Project) -> dict[str, str]:
    """Return the data, device and versions behind the numbers, as rows of a table."""
    return {
        "data": f"{project.params.dataset}, hash `{project.data_hash[:16]}`, {data_version(project)}",
        "device": ", ".join(f"{k} {v}" for k, v in project.compute.describe().items() if k != "python"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torchvision", "numpy", "scikit-learn", "dvc")),
    }
