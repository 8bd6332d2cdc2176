"""The clustering stage: the representatives of every class, and how well they cover it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dreamlib._engine.files import write_atomically, write_json
from dreamlib.data.types import LabeledImages
from dreamlib.sampling.coverage import batch_coverage
from dreamlib.sampling.representatives import ClassClusters, cluster_class
from dreamlib.settings import ClusteringParams
from pipeline.params import Params
from pipeline.project import Project, Setting


def cluster_counts(params: Params, ipc: int, fewest: int) -> list[int]:
    """Return the numbers of clusters per class that the stage makes at ``ipc``: for factor 1 and the budget's factor.

    They do not depend on a method, so changing methods does not rerun the stage. They are at most ``fewest``, the
    images of the smallest class, or the pool.
    """
    limit = min(fewest, params.clustering().pool or fewest)
    return sorted({min(ipc * factor**2, limit) for factor in (1, params.value("factor", ipc))})


@dataclass(frozen=True)
class ClusteringResult:
    """The clusterings of every class by cluster count, and how well batches of a matching step's size cover a class."""

    data: LabeledImages
    clusters: dict[int, list[ClassClusters]]
    coverage: pd.DataFrame


def clusters_of(
    project: Project, counts: Sequence[int], seed: int, clustering: ClusteringParams
) -> dict[int, list[ClassClusters]]:
    """Return the clusterings of the training images of every class into each number of clusters."""
    data, embedder = project.split("train").to(project.compute.device), project.embedder(seed, clustering)
    return {
        count: [
            cluster_class(
                data, label, count, seed, embedder, clustering.pool, clustering.max_iterations, clustering.pick
            )
            for label in range(data.num_classes)
        ]
        for count in counts
    }


def run_clustering(project: Project, ipc: int, seed: int) -> ClusteringResult:
    """Cluster every class of the training images; compare representative with random batches.

    Write results/clusters/ipc<ipc>-seed<seed>.safetensors (the representatives' rows, (K, count) for each count), and
    next to it the coverage table as .csv and its means as .json.
    """
    project.require_listed(None, ipc, seed)
    project.require_writable(clusters_path(project, ipc, seed))
    began, data = time.perf_counter(), project.split("train").to(project.compute.device)
    counts = cluster_counts(project.params, ipc, int(data.labels.bincount().min()))
    clusters = clusters_of(project, counts, seed, project.params.clustering())
    batch = project.params.value("real_batch", ipc)
    table = coverage_table(clusters[max(clusters)], project.info.classes, batch, seed)
    path = clusters_path(project, ipc, seed)
    rows = {f"rows_{count}": representatives_of(by_class) for count, by_class in clusters.items()}
    write_atomically(path, save(rows))
    write_atomically(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_json(path.with_suffix(".json"), coverage_means(table))
    project.record_timings(f"clustering-ipc{ipc}-seed{seed}", {"total": time.perf_counter() - began})
    return ClusteringResult(data, clusters, table)


def coverage_table(clusters: Sequence[ClassClusters], names: Sequence[str], batch: int, seed: int) -> pd.DataFrame:
    """Return, for each class and kind of batch: its size, the share of sub-clusters hit and the distance (mean)."""
    rows = [
        (names[label], kind, *measures)
        for label, class_clusters in enumerate(clusters)
        for kind, measures in batch_coverage(class_clusters.features, batch, seed, label).items()
    ]
    return pd.DataFrame(rows, columns=["class", "batch", "images", "clusters_hit", "nearest_distance"])


def coverage_means(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the table's means over classes, by kind of batch."""
    means = table.groupby("batch")[["clusters_hit", "nearest_distance"]].mean()
    return {str(kind): {k: float(v) for k, v in row.items()} for kind, row in means.iterrows()}


def clusters_path(project: Project, ipc: int, seed: int) -> Path:
    """Return the path where the clustering stage stores the representatives."""
    return project.results / "clusters" / f"ipc{ipc}-seed{seed}.safetensors"


def representatives_of(clusters: list[ClassClusters]) -> Tensor:
    """Return the rows (K, count) of the representatives of every class."""
    return torch.stack([c.representatives.cpu() for c in clusters])


def representatives(project: Project, setting: Setting, count: int) -> Tensor:
    """Return the rows (K, count) that a method starts from: the clustering stage's, which methods share.

    If settings or count differ, they are computed here. Raise FileNotFoundError if the stage has not run.
    """
    path, clustering = clusters_path(project, setting.ipc, setting.seed), project.params.clustering(setting.method)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the stage that makes it (dvc.yaml or studies/dvc.yaml)")
    shared = load_file(path) if clustering == project.params.clustering() else {}
    if f"rows_{count}" in shared:
        return shared[f"rows_{count}"]
    return representatives_of(clusters_of(project, [count], setting.seed, clustering)[count])
