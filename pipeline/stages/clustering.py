"""The clustering stage: every class's representatives, and how well they cover it."""

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
from dreamlib.sampling.real_batches import Embed
from dreamlib.sampling.representatives import ClassClusters, cluster_class
from dreamlib.settings import ClusteringParams
from dreamlib.synthetic.initial import INITS, images_needed
from pipeline.params import Params
from pipeline.project import Project, Setting


def cluster_counts(params: Params, ipc: int, fewest: int) -> list[int]:
    """How many clusters a class the listed methods need at ``ipc``: one a canvas crop, for each factor in use.

    One a canvas where none of them starts from clusters: the report then shows what such a start would be, as far as
    the ``fewest`` images a class, or the pool of them, go.
    """
    how = [params.distillation(method, ipc) for method in params.methods]
    started = {images_needed(ipc, h.factor, h.decode) for h in how if INITS[h.init].uses_clusters}
    return sorted(started or {min(ipc, fewest, params.clustering().pool or fewest)})


def other_clusterings(params: Params, ipc: int) -> list[tuple[str, ClusteringParams, int]]:
    """Return (method, how, clusters a class) for the methods that start from another clustering than the stage's."""
    found = []
    for method in params.methods:
        how = params.distillation(method, ipc)
        if INITS[how.init].uses_clusters and params.clustering(method) != params.clustering():
            found.append((method, params.clustering(method), images_needed(ipc, how.factor, how.decode)))
    return found


@dataclass(frozen=True)
class ClusteringResult:
    """Per cluster count, every class's clustering; and how well batches of the matching step's size cover a class."""

    data: LabeledImages
    clusters: dict[int, list[ClassClusters]]
    coverage: pd.DataFrame


def run_clustering(project: Project, ipc: int, seed: int) -> ClusteringResult:
    """Cluster every class of the training images; compare representative with random batches.

    Writes results/clusters/ipc<ipc>-seed<seed>.safetensors (the representatives' rows, (K, count) for each count, and
    for each method that clusters in its own way) and the coverage table beside it as .csv, its means as .json.
    """
    project.require(None, ipc, seed)
    project.require_writable(clusters_path(project, ipc, seed))
    began, how, embedder = time.perf_counter(), project.params.clustering(), project.embedder(seed)
    data = project.split("train").to(project.compute.device)
    classes = range(data.num_classes)

    def clustered(count: int, how: ClusteringParams, embedder: Embed) -> list[ClassClusters]:
        return [cluster_class(data, c, count, seed, embedder, how.pool, how.max_iterations, how.pick) for c in classes]

    counts = cluster_counts(project.params, ipc, int(data.labels.bincount().min()))
    clusters = {count: clustered(count, how, embedder) for count in counts}
    batch = max(project.params.distillation(m, ipc).real_batch for m in project.params.methods)
    table = coverage_table(clusters[max(clusters)], project.info.classes, batch, seed)
    path = clusters_path(project, ipc, seed)
    rows = {f"rows_{n}": representatives_of(found) for n, found in clusters.items()}
    for method, own, count in other_clusterings(project.params, ipc):
        rows[f"rows_{count}_{method}"] = representatives_of(clustered(count, own, project.embedder(seed, own)))
    write_atomically(path, save(rows))
    write_atomically(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_json(path.with_suffix(".json"), coverage_means(table))
    project.note(f"clustering-ipc{ipc}-seed{seed}", {"total": time.perf_counter() - began})
    return ClusteringResult(data, clusters, table)


def coverage_table(clusters: Sequence[ClassClusters], names: Sequence[str], batch: int, seed: int) -> pd.DataFrame:
    """Return, for each class and kind of batch: its size, the share of sub-clusters hit and the distance (mean)."""
    rows = [
        (names[label], kind, *measures)
        for label, own in enumerate(clusters)
        for kind, measures in batch_coverage(own.features, batch, seed, label).items()
    ]
    return pd.DataFrame(rows, columns=["class", "batch", "images", "clusters_hit", "nearest_distance"])


def coverage_means(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the table's means over classes, by kind of batch."""
    means = table.groupby("batch")[["clusters_hit", "nearest_distance"]].mean()
    return {str(kind): {k: float(v) for k, v in row.items()} for kind, row in means.iterrows()}


def clusters_path(project: Project, ipc: int, seed: int) -> Path:
    """Where the clustering stage leaves the representatives."""
    return project.results / "clusters" / f"ipc{ipc}-seed{seed}.safetensors"


def representatives_of(clusters: list[ClassClusters]) -> Tensor:
    """Return the rows (K, count) that stand for the clusters of every class."""
    return torch.stack([c.representatives.cpu() for c in clusters])


def representatives(project: Project, setting: Setting, count: int) -> Tensor:
    """The rows (K, count) the clustering stage chose; raises FileNotFoundError naming the stage when it has not run."""
    path = clusters_path(project, setting.ipc, setting.seed)
    stored = load_file(path) if path.is_file() else {}
    own = project.params.clustering(setting.method) != project.params.clustering()
    name = f"rows_{count}_{setting.method}" if own else f"rows_{count}"
    if name not in stored:
        raise FileNotFoundError(f"{path} holds no clustering '{name}'; make it with `dvc repro clustering`")
    return stored[name]
