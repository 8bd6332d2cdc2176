"""The stages behind the notebooks: each reads its inputs, does one thing, leaves its outputs under results/."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dreamlib import datasets
from dreamlib.checkpoint import Checkpoint
from dreamlib.compute import Compute
from dreamlib.coverage import coverage_means, coverage_table
from dreamlib.datasets import DATASETS
from dreamlib.distill import Distiller, DistillResult
from dreamlib.files import write_atomically, write_json
from dreamlib.initialize import (
    INITS,
    ClassClusters,
    check_budget,
    cluster_class,
    fill,
    images_needed,
    noise,
    random_rows,
)
from dreamlib.kernels import Kernels
from dreamlib.networks import NETWORKS, build
from dreamlib.objectives import make as make_objective
from dreamlib.params import DistillParams, ParameterError, Params, digest, find_root, read_params
from dreamlib.provenance import code_hash, note_run
from dreamlib.registry import unknown
from dreamlib.sampling import SAMPLERS, Embed
from dreamlib.seeding import derive, generator
from dreamlib.synthetic import SyntheticSet
from dreamlib.training import TrainSettings, augmentation_for, embed, fit
from dreamlib.types import DatasetInfo, LabeledImages


@dataclass(frozen=True)
class Setting:
    """One point of the DVC matrix, and the name its files carry."""

    method: str
    ipc: int
    seed: int

    @property
    def name(self) -> str:
        """As in results/sets/<name>.safetensors.

        >>> Setting("dream", 1, 0).name
        'dream-ipc1-seed0'
        """
        return f"{self.method}-ipc{self.ipc}-seed{self.seed}"


@dataclass(frozen=True)
class Project:
    """The project's root and validated parameters, with the data they name; where every notebook begins."""

    root: Path
    params: Params

    @classmethod
    def open(cls, root: str | Path | None = None) -> "Project":
        """The project around the current directory; raises ParameterError for whatever is wrong with params.yaml."""
        root = Path(root) if root else find_root()
        project = cls(root, read_params(root))
        check_names(project.params)
        return project

    @cached_property
    def compute(self) -> Compute:
        """The device and format params.yaml asks for."""
        c = self.params.compute
        return Compute.resolve(c.device, c.precision, c.threads, c.compile)

    @cached_property
    def info(self) -> DatasetInfo:
        """The data set's classes, shape and statistics."""
        return datasets.info(self.params.dataset, self.params.data.options)

    @cached_property
    def data_hash(self) -> str:
        """The data set's hash, over its files."""
        p = self.params
        return datasets.data_hash(p.dataset, self.root / p.data.directory, p.data.options)

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """The matched network: name and options."""
        return self.params.network.name, self.params.network.options

    def split(self, name: str, seed: int = 0) -> LabeledImages:
        """The 'train' or 'validation' images. One split for all runs (seed 0): runs then differ by their own seed only.

        Raises ValueError for 'test', which only ``dreamlib.evaluate`` reads.
        """
        if name not in ("train", "validation"):
            raise ValueError(f"split '{name}' is not read here; the test images belong to dreamlib.evaluate alone")
        p = self.params
        return datasets.load_split(
            p.dataset, name, self.root / p.data.directory, p.data.validation_per_class, seed, p.data.options
        )

    def require(self, method: str | None, ipc: int, seed: int) -> None:
        """Refuse a coordinate that params.yaml does not list; raises ParameterError naming what it lists."""
        given = {"methods": method, "ipc": ipc, "seeds": seed}
        for key, value in given.items():
            listed = getattr(self.params, key)
            if value is not None and value not in listed:
                raise ParameterError(f"{key}: {value!r} is not in params.yaml, which lists {listed}; add it there")

    def note(self, name: str, seconds: dict[str, float]) -> None:
        """Keep this run's times (see ``provenance.note_run``)."""
        note_run(name, self.compute, seconds, self.root)

    def embedder(self, seed: int) -> Embed:
        """The feature map the clustering stage works in: pixels, an untrained or a briefly trained network."""
        how = self.params.clustering()
        if how.features == "pixels":
            return lambda images: images.flatten(1)
        name, options = self.network
        rng = generator(seed, "clustering-network")
        model = self.compute.place(build(name, self.info, rng, options))
        kernels = Kernels(model, self.compute)
        if how.features == "trained":
            data = self.split("train").to(self.compute.device)
            train = TrainSettings(batch=128, augmentation=augmentation_for(self.info, "flip_color_crop_cutout"))
            fit(
                model, data.images, data.labels, self.info, train, kernels,
                epochs=how.epochs, seed=derive(seed, "clustering-training"), schedule=lambda lr, _epoch, _epochs: lr,
            )  # fmt: skip
        return lambda images: embed(model, images, self.info, kernels)


def check_names(params: Params) -> None:
    """Every component params.yaml names exists, with the options it gives; raises UnknownNameError or ParameterError."""
    if params.dataset not in DATASETS:
        raise unknown("data set", params.dataset, DATASETS.names())
    if params.network.name not in NETWORKS:
        raise unknown("network", params.network.name, NETWORKS.names())
    for method in params.methods:
        for ipc in params.ipc:
            how = params.distillation(method, ipc)
            for kind, registry in (("init", INITS), ("sampler", SAMPLERS)):
                registry[getattr(how, kind)]
            make_objective(how.objective, how.options)


def preflight(project: Project) -> None:
    """Everything that could only fail late, tried first: data present and whole, each setting possible with it.

    Raises ParameterError, ValueError or DataError with the value, the limit and the remedy.
    """
    train, p = project.split("train"), project.params
    build(p.network.name, project.info, torch.Generator(), p.network.options)
    for method in p.methods:
        for ipc in p.ipc:
            how = p.distillation(method, ipc)
            check_budget(train, project.info, ipc, how.factor, how.decode)


# ---- clustering -----------------------------------------------------------------------------------------------------


def cluster_counts(params: Params, ipc: int) -> list[int]:
    """How many clusters a class the listed methods need at ``ipc``: one a canvas crop, for each factor in use."""
    how = [params.distillation(method, ipc) for method in params.methods]
    return sorted({images_needed(ipc, h.factor, h.decode) for h in how if h.init == "kmeans"})


@dataclass(frozen=True)
class ClusteringResult:
    """Per cluster count, every class's clustering; and how well batches of the matching step's size cover a class."""

    data: LabeledImages
    clusters: dict[int, list[ClassClusters]]
    coverage: pd.DataFrame


def run_clustering(project: Project, ipc: int, seed: int) -> ClusteringResult:
    """Cluster every class of the training images; compare representative with random batches.

    Writes results/clusters/ipc<ipc>-seed<seed>.safetensors (the representatives' rows, (K, count) for each count) and
    the coverage table beside it as .csv, its means as .json.
    """
    project.require(None, ipc, seed)
    began, how, embedder = time.perf_counter(), project.params.clustering(), project.embedder(seed)
    data = project.split("train").to(project.compute.device)
    classes = range(data.num_classes)
    clusters = {
        count: [cluster_class(data, c, count, seed, embedder, how.pool, how.max_iterations) for c in classes]
        for count in cluster_counts(project.params, ipc)
    }
    batch = max(project.params.distillation(m, ipc).real_batch for m in project.params.methods)
    table = coverage_table(clusters[max(clusters)], project.info, batch, seed) if clusters else pd.DataFrame()
    path = _clusters_path(project, ipc, seed)
    rows = {f"rows_{n}": torch.stack([c.representatives.cpu() for c in found]) for n, found in clusters.items()}
    write_atomically(path, save(rows))
    write_atomically(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_json(path.with_suffix(".json"), coverage_means(table))
    project.note(f"clustering-ipc{ipc}-seed{seed}", {"total": time.perf_counter() - began})
    return ClusteringResult(data, clusters, table)


def _clusters_path(project: Project, ipc: int, seed: int) -> Path:
    return project.root / "results" / "clusters" / f"ipc{ipc}-seed{seed}.safetensors"


def _representatives(project: Project, setting: Setting, count: int) -> Tensor:
    path = _clusters_path(project, setting.ipc, setting.seed)
    stored = load_file(path) if path.is_file() else {}
    if f"rows_{count}" not in stored:
        raise FileNotFoundError(f"{path} holds no clustering into {count}; make it with `dvc repro clustering`")
    return stored[f"rows_{count}"]


# ---- distillation ---------------------------------------------------------------------------------------------------


def starting_set(project: Project, setting: Setting, how: DistillParams, data: LabeledImages) -> SyntheticSet:
    """The canvases before distillation, by the method's ``init``."""
    check_budget(data, project.info, setting.ipc, how.factor, how.decode)
    count = images_needed(setting.ipc, how.factor, how.decode)
    make: dict[str, Callable[[], SyntheticSet]] = {
        "noise": lambda: noise(data, project.info, setting.ipc, how.factor, how.decode, setting.seed),
        "random": lambda: _filled(random_rows(data, count, setting.seed)),
        "kmeans": lambda: _filled(_representatives(project, setting, count)),
    }

    def _filled(rows: Tensor) -> SyntheticSet:
        return fill(data, rows, setting.ipc, how.factor, how.decode, how.shrink)

    return make[how.init]()


def parameter_hash(project: Project, setting: Setting) -> str:
    """A hash of every parameter that shapes a distilled set."""
    p = project.params
    how = p.distillation(setting.method, setting.ipc).model_dump(exclude={"checkpoint_every_s"})
    return digest(p.dataset, setting.name, how, p.clustering(), p.network, p.data, p.compute)


def run_distillation(project: Project, setting: Setting) -> DistillResult:
    """Distil one setting, resuming where a killed run stopped, and write its set, snapshots, history and metrics.

    results/sets/<name>.safetensors is the set; results/distillation/<name>.{json,csv} its metrics and loss history;
    results/snapshots/<name>.safetensors the canvases along the way.
    """
    project.require(setting.method, setting.ipc, setting.seed)
    how = project.params.distillation(setting.method, setting.ipc)
    data = project.split("train")
    start = starting_set(project, setting, how, data)
    hashes = {"parameter_hash": parameter_hash(project, setting), "data_hash": project.data_hash}
    key = digest(hashes, code_hash("distillation", project.root))
    checkpoint = Checkpoint(project.root / ".dream" / "checkpoints", f"{setting.name}-{key}")
    run = Distiller(start, data, project.info, how, project.network, project.compute, setting.seed)
    result = run.run(checkpoint, setting.name)
    result.synthetic.info = describe(project, setting) | hashes
    _write_distillation(project, setting, result)
    checkpoint.delete()
    project.note(f"distillation-{setting.name}", result.seconds)
    return result


def describe(project: Project, setting: Setting) -> dict[str, Any]:
    """What a set's file says of where it comes from, besides its hashes."""
    info = project.info
    return {
        "dataset": info.name,
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "method": setting.method,
        "seed": setting.seed,
        "budget": project.params.budget,
    }


def _write_distillation(project: Project, setting: Setting, result: DistillResult) -> None:
    results, name = project.root / "results", setting.name
    snapshots = {f"{iteration:07d}": canvases for iteration, canvases in result.snapshots.items()}
    write_atomically(results / "snapshots" / f"{name}.safetensors", save(snapshots))
    history = pd.DataFrame(result.history, columns=["iteration", "loss"])
    write_atomically(results / "distillation" / f"{name}.csv", history.to_csv(index=False).encode())
    sha256 = result.synthetic.save(results / "sets" / f"{name}.safetensors")
    metrics = {
        "iterations": len(result.history),
        "first_loss": result.history[0][1] if result.history else None,
        "last_loss": result.history[-1][1] if result.history else None,
        "stored_floats": result.synthetic.stored_floats,
        "training_images": len(result.synthetic.decode()[1]),
        "sha256": sha256,
    }
    write_json(results / "distillation" / f"{name}.json", metrics)


def read_snapshots(project: Project, setting: Setting) -> dict[int, Tensor]:
    """Iteration → canvases, as the distillation stage kept them."""
    path = project.root / "results" / "snapshots" / f"{setting.name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with `dvc repro distillation`")
    return {int(key): canvases for key, canvases in sorted(load_file(path).items())}


def read_set(project: Project, setting: Setting) -> SyntheticSet:
    """The distilled set of one setting."""
    return SyntheticSet.open(project.root / "results" / "sets" / f"{setting.name}.safetensors")
