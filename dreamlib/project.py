"""The project at hand: its root, validated parameters, the data they name, and one point of the DVC matrix."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlib import datasets, parallel
from dreamlib.augment import Augmentation
from dreamlib.compute import Compute
from dreamlib.datasets import DATASETS
from dreamlib.initialize import INITS, check_budget, images_needed
from dreamlib.kernels import Kernels
from dreamlib.networks import NETWORKS, build
from dreamlib.objectives import make as make_objective
from dreamlib.params import ClusteringParams, DistillParams, ParameterError, Params, find_root, read_params
from dreamlib.provenance import note_run, noted_seconds
from dreamlib.registry import unknown
from dreamlib.sampling import SAMPLERS, Embed
from dreamlib.seeding import derive, generator
from dreamlib.synthetic import SyntheticSet
from dreamlib.training import embed, feature_channels, train_on_real
from dreamlib.types import DatasetInfo, LabeledImages
from dreamlib.whitening import ZCA, whitened_info


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
    study: str | None = None

    @classmethod
    def open(cls, root: str | Path | None = None, study: str | None = None) -> "Project":
        """The project around the current directory, checked whole: see ``check_names`` and ``preflight``.

        With ``study``, under the parameters of that section of studies.yaml and with a results folder of its own.
        """
        root = Path(root) if root else find_root()
        project = cls(root, read_params(root, study), study)
        check_names(project.params)
        preflight(project)
        return project

    @cached_property
    def _splits(self) -> dict[str, LabeledImages]:
        return {}

    @cached_property
    def compute(self) -> Compute:
        """The device and format params.yaml asks for."""
        c = self.params.compute
        device, threads = parallel.local_device(c.device), parallel.share_of_threads(c.threads)
        return Compute.resolve(device, c.precision, threads, c.compile)

    @cached_property
    def used_params(self) -> Params:
        """The parameters with the number format that 'auto' stands for on this device: what a result is traced to."""
        compute = self.params.compute.model_copy(update={"precision": self.compute.precision})
        return self.params.model_copy(update={"compute": compute})

    @cached_property
    def info(self) -> DatasetInfo:
        """The data set's classes, shape and statistics."""
        return datasets.info(self.params.dataset, self.params.data.options)

    @cached_property
    def data_hash(self) -> str:
        """The data set's hash, over its files."""
        p = self.params
        return datasets.data_hash(p.dataset, self.root / p.data.directory, p.data.options)

    def stage(self, name: str) -> str:
        """The stage of dvc.yaml that does ``name`` for this project: in a study one stage does a run's every part.

        Studies named alike (claims_curves, claims_factor) are one stage's matrix, named after what comes first.
        """
        return f"{self.study.split('_')[0]}_runs" if self.study else name

    @property
    def settings(self) -> list[Setting]:
        """All settings of the matrix, in params.yaml's order."""
        p = self.params
        return [Setting(method, ipc, seed) for ipc in p.ipc for method in p.methods for seed in p.seeds]

    @property
    def results(self) -> Path:
        """Where results lie: results/, or a study's own folder below it."""
        return self.root / "results" / (self.study or "")

    def file(self, kind: str, setting: Setting, suffix: str) -> Path:
        """One file of one setting: results/<kind>/<name><suffix>; a study keeps a folder for each method."""
        folder = self.results / setting.method if self.study else self.results
        return folder / kind / f"{setting.name}{suffix}"

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """The matched network: name and options."""
        return self.params.network.name, self.params.network.options

    def split(self, name: str) -> LabeledImages:
        """The 'train' or 'validation' images. One split for all runs (seed 0): runs then differ by their own seed only.

        Raises ValueError for 'test', which only ``dreamlib.evaluate`` reads.
        """
        if name not in ("train", "validation"):
            raise ValueError(f"split '{name}' is not read here; the test images belong to dreamlib.evaluate alone")
        p = self.params
        if name not in self._splits:
            self._splits[name] = datasets.load_split(
                p.dataset, name, self.root / p.data.directory, p.validation_per_class, 0, p.data.options
            )
        return self._splits[name]

    @cached_property
    def zca(self) -> ZCA:
        """The whitening of the training images; validation and test images play no part in it."""
        return ZCA.fit(self.split("train").images)

    def seen(self, data: LabeledImages, how: DistillParams) -> tuple[LabeledImages, DatasetInfo]:
        """Return real images as a method sees them, and what is then known of them.

        Whitened, or normalised where canvases hold unbounded normalised pixels, or as they are.
        """
        info = self.info
        if how.statistics == "dc" and info.dc_statistics:
            info = replace(info, mean=info.dc_statistics[0], std=info.dc_statistics[1])
        return self._transformed(data, info, how.whitening, how.bounded)

    def seen_with(self, data: LabeledImages, synthetic: SyntheticSet) -> tuple[LabeledImages, DatasetInfo]:
        """Return real images in the units of a set's canvases: under its statistics, its whitening, its bounds."""
        about = synthetic.info
        info = replace(self.info, mean=tuple(about["mean"]), std=tuple(about["std"])) if "mean" in about else self.info
        return self._transformed(data, info, synthetic.whitening, synthetic.bounded)

    def _transformed(
        self, data: LabeledImages, info: DatasetInfo, whitening: str, bounded: bool
    ) -> tuple[LabeledImages, DatasetInfo]:
        if whitening != "none":
            return replace(data, images=self.zca.apply(data.images)), whitened_info(info)
        if bounded:
            return data, info
        return replace(data, images=info.normalise(data.images)), info.unbounded()

    def pictures(self, synthetic: SyntheticSet, images: Tensor | None = None) -> Tensor:
        """Return a set's canvases (N, C, H, W), or images in the units of its canvases, as pictures in [0, 1].

        Whitening and normalisation are undone; what then lies outside [0, 1] is clipped, for show only.
        """
        shown = synthetic.pictures() if images is None else images
        return (self.zca.undo(shown) if synthetic.whitening != "none" else synthetic.as_pixels(shown)).clamp(0, 1)

    def require(self, method: str | None, ipc: int, seed: int) -> None:
        """Refuse a coordinate that params.yaml does not list; raises ParameterError naming what it lists."""
        given = {"methods": method, "ipc": ipc, "seeds": seed}
        for key, value in given.items():
            listed = getattr(self.params, key)
            if value is not None and value not in listed:
                raise ParameterError(f"{key}: {value!r} is not in params.yaml, which lists {listed}; add it there")

    def note(self, name: str, seconds: dict[str, float], **more: dict[Any, float]) -> None:
        """Keep this run's times (see ``provenance.note_run``)."""
        name = f"{self.study}/{name}" if self.study else name
        note_run(name, self.compute, seconds, self.root, self.params.dataset, **more)

    def delegated(self, stage: str, setting: Setting, *more: str) -> bool:
        """Run a stage in ``compute.workers`` processes, when there are to be several and this is not one of them.

        Returns whether that was done: the stage's files are then there. Raises ``parallel.WorkerError``.
        """
        c = self.params.compute
        if c.workers == 1 or parallel.active():
            return False
        point = {"root": self.root.resolve(), "method": setting.method, "ipc": setting.ipc, "seed": setting.seed}
        named = [f"--{key}={value}" for key, value in point.items()] + ([f"--study={self.study}"] if self.study else [])
        parallel.run_workers(c.workers, [stage, *named, *more], self.root, c.threads)
        return True

    def noted(self, name: str) -> dict[str, float]:
        """The times ``note`` kept under a name."""
        return noted_seconds(f"{self.study}/{name}" if self.study else name, self.root)

    def embedder(self, seed: int, how: ClusteringParams | None = None) -> Embed:
        """Return the feature map of a clustering: pixels, an untrained or a briefly trained network's features.

        ``how`` is the clustering stage's by default.
        """
        how = how or self.params.clustering()
        if how.features == "pixels":
            return lambda images: images.flatten(1)
        name, options = self.network
        model = self.compute.place(build(name, self.info, generator(seed, "clustering-network"), options))
        kernels = Kernels(model, self.compute)
        if how.features == "trained":
            data = self.split("train").to(self.compute.device)
            train_on_real(model, data, self.info, kernels, epochs=how.epochs, seed=derive(seed, "clustering-training"))
        info = self.info
        if how.features == "random_unnormalised":
            info = info.unbounded()
        return lambda images: embed(model, images, info, kernels)


def check_names(params: Params) -> None:
    """Every component params.yaml names exists with the options it gives; raises UnknownNameError or ParameterError."""
    if params.dataset not in DATASETS:
        raise unknown("data set", params.dataset, DATASETS.names())
    for budget in params.budgets.values():
        for name in budget.by_dataset:
            if name not in DATASETS:
                raise unknown("data set (under by_dataset)", name, DATASETS.names())
    for method, block in params.method.items():
        for name in _datasets_named(block, params.budgets):
            if name not in DATASETS:
                raise unknown(f"data set (under method.{method})", name, DATASETS.names())
    if params.network.name not in NETWORKS:
        raise unknown("network", params.network.name, NETWORKS.names())
    for method in params.methods:
        for ipc in params.ipc:
            how = params.distillation(method, ipc)
            for kind, registry in (("init", INITS), ("sampler", SAMPLERS)):
                registry[getattr(how, kind)]
            _check_effects(method, how)
            Augmentation.parse(how.augmentation, how.augmentation_mode)
            Augmentation.parse(how.network_augmentation, how.augmentation_mode)
            judged = params.evaluation(method, ipc)
            Augmentation.parse(judged.augmentation, judged.augmentation_mode)
            for network in judged.networks:
                if network.name not in NETWORKS:
                    raise unknown("network (under evaluation.networks)", network.name, NETWORKS.names())
    Augmentation.parse(params.experts().augmentation, params.experts().mode)


def _datasets_named(block: Mapping[str, Any], budgets: Iterable[str]) -> set[str]:
    """The data sets a method's block has overrides for."""
    blocks = [block, *(block[budget] for budget in budgets if isinstance(block.get(budget), Mapping))]
    return {str(name) for each in blocks for name in each.get("by_dataset") or {}}


def _check_effects(method: str, how: DistillParams) -> None:
    """Refuse parameters that would be without effect; raises ParameterError, or as ``make_objective`` does."""
    objective, where = make_objective(how.objective, how.options), f"params.yaml: method {method}"
    if how.sampler != "random" and not objective.uses_sampler:
        remedy = ", or options.real_batch: 0, which takes its batches" if hasattr(objective, "real_batch") else ""
        raise ParameterError(
            f"{where}: sampler: {how.sampler} has no effect, since objective '{how.objective}' with these options does "
            f"not use a sampler's batches; set sampler: random{remedy}"
        )
    if how.labels != "hard" and getattr(objective, "learn_labels", False):
        raise ParameterError(
            f"{where}: labels: {how.labels} would replace the labels that options.learn_labels learns; set labels: "
            "hard, or learn_labels: false"
        )
    if how.sampler == "released" and not how.bounded:
        raise ParameterError(
            f"{where}: sampler: released clusters un-normalised images, which bounded: false does not have; set "
            "bounded: true, or sampler: representative"
        )
    if how.pretrain_epochs and how.train_on != "real":
        raise ParameterError(
            f"{where}: pretrain_epochs = {how.pretrain_epochs:g} has no effect with train_on: {how.train_on}; set it "
            "to 0, or train_on: real"
        )


def _check_pool(params: Params, method: str, ipc: int, how: DistillParams) -> None:
    """Refuse a clustering among fewer images than it is to choose; raises ParameterError."""
    pool, needed = params.clustering(method).pool, images_needed(ipc, how.factor, how.decode)
    if how.init not in ("noise", "random") and 0 < pool < needed:
        raise ParameterError(
            f"params.yaml: clustering.pool = {pool} of budget {params.budget}, but method {method} (init: {how.init}) "
            f"starts from {needed} images a class at ipc {ipc}; raise the pool to {needed}, or 0 for all images"
        )


def preflight(project: Project) -> None:
    """Everything that could only fail late, tried first: data present and whole, each setting possible with it.

    Raises ParameterError, ValueError or DataError with the value, the limit and the remedy.
    """
    p = project.params
    if p.compute.workers > project.info.num_classes:
        raise ParameterError(
            f"params.yaml: compute.workers = {p.compute.workers} is more than the {project.info.num_classes} classes "
            f"of {p.dataset}, which are what workers share; use at most {project.info.num_classes}"
        )
    train = project.split("train")
    matched = build(p.network.name, project.info, torch.Generator(), p.network.options)
    for network in (network for ipc in p.ipc for method in p.methods for network in p.evaluation(method, ipc).networks):
        build(network.name, project.info, torch.Generator(), network.options)
    for method in p.methods:
        for ipc in p.ipc:
            how = p.distillation(method, ipc)
            check_budget(train, project.info, ipc, how.factor, how.decode, how.init)
            _check_pool(p, method, ipc, how)
            objective = make_objective(how.objective, how.options)
            objective.check(matched, project.info, p.experts().epochs)
            if how.cluster_features == "pooled":
                feature_channels(matched)
