"""The current project: its root, validated parameters, the data they name, and one point of the DVC matrix."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamlib import data as datasets
from dreamlib._engine import ranks
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute, peak_memory_bytes
from dreamlib._engine.files import read_json, require_writable, write_json
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.data.whitening import EPSILON, ZCA, whitened_info
from dreamlib.errors import ParameterError
from dreamlib.networks import build
from dreamlib.sampling.real_batches import Embed
from dreamlib.settings import ClusteringParams, DistillParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import embed
from dreamlib.training.trainer import train_on_real
from pipeline.params import Params, find_root, read_params
from pipeline.params.check import check_names, preflight
from pipeline.params.images import check_images

RUNS = Path(".dream") / "runs"  # timings of runs, outside version control because they vary


def code_hash(root: Path) -> str:
    """Return a hash of the library's files; it is part of a checkpoint's name, so that changed code starts afresh."""
    whole = hashlib.sha256()
    for file in sorted((root / "dreamlib").rglob("*.py")):
        whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


@dataclass(frozen=True)
class Setting:
    """One point of the DVC matrix, and the name of its files."""

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
    """The project's root and validated parameters, with the data they name; the entry point of every notebook."""

    root: Path
    params: Params
    study: str | None = None

    @classmethod
    def open(cls, root: str | Path | None = None, study: str | None = None) -> "Project":
        """Return the project around the current directory, completely checked: see ``check_names`` and ``preflight``.

        With ``study``, it has the parameters of that section of studies/params.yaml and its own results folder.
        """
        root = Path(root) if root else find_root()
        project = cls(root, read_params(root, study, check_names), study)
        try:
            train = project.split("train")
        except ValueError:  # too few images to hold some out: report what every setting needs
            check_images(project.params, project.info, project.class_counts)
            raise
        preflight(project.params, project.info, train)
        return project

    @cached_property
    def _splits(self) -> dict[str, LabeledImages]:
        return {}

    @cached_property
    def compute(self) -> Compute:
        """The device and number format that params.yaml specifies."""
        c = self.params.compute
        device, threads = ranks.local_device(c.device), ranks.share_of_threads(c.threads)
        return Compute.resolve(device, c.precision, threads, self.params.compile)

    @cached_property
    def used_params(self) -> Params:
        """The parameters with `precision` and `compile` as actually used; recorded with results."""
        used = {"precision": self.compute.precision, "compile": self.params.compile}
        compute = self.params.compute.model_copy(update=used)
        return self.params.model_copy(update={"compute": compute})

    @cached_property
    def info(self) -> DatasetInfo:
        """The data set's classes, shape and statistics."""
        p = self.params
        return datasets.info(p.dataset, p.data.options, self.root / p.data.directory)

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class (K,), including those held out for validation."""
        p = self.params
        whole = datasets.create(p.dataset, p.data.options).load("train", self.root / p.data.directory)
        return whole.labels.bincount(minlength=whole.num_classes)

    @cached_property
    def data_hash(self) -> str:
        """The hash of the data set's files."""
        p = self.params
        return datasets.data_hash(p.dataset, self.root / p.data.directory, p.data.options)

    @property
    def settings(self) -> list[Setting]:
        """All settings of the matrix, in params.yaml's order."""
        p = self.params
        return [Setting(method, ipc, seed) for ipc in p.ipc for method in p.methods for seed in p.seeds]

    @property
    def results(self) -> Path:
        """The folder of the results: results/, or a study's folder below it."""
        return self.root / "results" / (self.study or "")

    def file(self, kind: str, setting: Setting, suffix: str) -> Path:
        """Return one file of one setting: results/<kind>/<name><suffix>; a study has a folder per method."""
        folder = self.results / setting.method if self.study else self.results
        return folder / kind / f"{setting.name}{suffix}"

    def require_writable(self, *files: Path) -> None:
        """Raise OSError, before a run starts, if its files or checkpoints could not be written."""
        require_writable(*(file.parent for file in files), self.root / ".dream")

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """The matched network: name and options."""
        return self.params.network.name, self.params.network.options

    def split(self, name: str) -> LabeledImages:
        """Return the 'train' or 'validation' images.

        All runs split with seed 0, so that they differ by their own seed only. Raise ValueError for 'test', which only
        ``dreamlib.evaluation`` reads.
        """
        if name not in ("train", "validation"):
            raise ValueError(f"split '{name}' is not read here; the test images belong to dreamlib.evaluation alone")
        p = self.params
        if name not in self._splits:
            self._splits[name] = datasets.load_split(
                p.dataset, name, self.root / p.data.directory, p.validation_per_class, 0, p.data.options
            )
        return self._splits[name]

    @cached_property
    def _whitenings(self) -> dict[float, ZCA]:
        return {}

    def zca_with(self, epsilon: float) -> ZCA:
        """Return the whitening of the training images; validation and test images play no part in it."""
        if epsilon not in self._whitenings:
            self._whitenings[epsilon] = ZCA.fit(self.split("train").images, epsilon)
        return self._whitenings[epsilon]

    def images_for_method(self, data: LabeledImages, settings: DistillParams) -> tuple[LabeledImages, DatasetInfo]:
        """Return real images in the units that a method uses, and their description.

        They are whitened, normalised if canvases hold unbounded normalised pixels, or unchanged.
        """
        info = self.info
        if settings.statistics == "dc" and info.dc_statistics:
            info = replace(info, mean=info.dc_statistics[0], std=info.dc_statistics[1])
        return self._transformed(data, info, settings.whitening, settings.bounded, EPSILON)

    def images_in_units_of(self, data: LabeledImages, synthetic: SyntheticSet) -> tuple[LabeledImages, DatasetInfo]:
        """Return real images in the units of a set's canvases: under its statistics, its whitening, its bounds."""
        about = synthetic.info
        info = replace(self.info, mean=tuple(about["mean"]), std=tuple(about["std"])) if "mean" in about else self.info
        return self._transformed(data, info, synthetic.whitening, synthetic.bounded, synthetic.zca_epsilon)

    def _transformed(
        self, data: LabeledImages, info: DatasetInfo, whitening: str, bounded: bool, epsilon: float
    ) -> tuple[LabeledImages, DatasetInfo]:
        if whitening != "none":
            return replace(data, images=self.zca_with(epsilon).apply(data.images)), whitened_info(info, epsilon)
        if bounded:
            return data, info
        return data.normalised(info), info.unbounded()

    def pictures(self, synthetic: SyntheticSet, images: Tensor | None = None) -> Tensor:
        """Return a set's canvases (N, C, H, W), or images in the units of its canvases, as pictures in [0, 1].

        Whitening and normalisation are undone; values outside [0, 1] are then clipped, for display only.
        """
        shown = synthetic.pictures() if images is None else images
        if synthetic.whitening != "none":
            return self.zca_with(synthetic.zca_epsilon).undo(shown).clamp(0, 1)
        return synthetic.as_pixels(shown).clamp(0, 1)

    def require_listed(self, method: str | None, ipc: int, seed: int) -> None:
        """Raise ParameterError for a method, ipc or seed that params.yaml does not list, naming those it lists."""
        coordinates = {"methods": method, "ipc": ipc, "seeds": seed}
        for key, value in coordinates.items():
            listed = getattr(self.params, key)
            if value is not None and value not in listed:
                raise ParameterError(f"{key}: {value!r} is not in params.yaml, which lists {listed}; add it there")

    def record_timings(self, name: str, seconds: dict[str, float], **more: dict[Any, float]) -> None:
        """Write a run's seconds, peak memory, device and versions to .dream/runs/<name>.json.

        The outputs do not contain them, so that they are byte-identical across runs.

        seconds: seconds of each part of the run.
        more: further tables of measured numbers, such as the seconds at each snapshot.
        """
        entry = {
            "dataset": self.params.dataset,
            "seconds": {k: round(v, 2) for k, v in seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            **self.compute.describe(),
            **{kind: {str(k): round(v, 2) for k, v in table.items()} for kind, table in more.items()},
        }
        write_json(self._timings_file(name), entry)

    def timings(self, name: str) -> dict[str, float]:
        """Return the seconds that ``record_timings`` wrote under a name."""
        return read_json(self._timings_file(name))["seconds"]

    def _timings_file(self, name: str) -> Path:
        return self.root / RUNS / (self.study or "") / f"{name}.json"

    def run_in_workers(self, stage: str, setting: Setting, *more: str) -> bool:
        """Run a stage in ``compute.workers`` processes, if there are to be several and this is not one of them.

        Return whether it ran: the stage's files then exist. Raise ``ranks.WorkerError``.
        """
        c = self.params.compute
        if c.workers == 1 or ranks.active():
            return False
        point = {"root": self.root.resolve(), "method": setting.method, "ipc": setting.ipc, "seed": setting.seed}
        named = [f"--{key}={value}" for key, value in point.items()] + ([f"--study={self.study}"] if self.study else [])
        ranks.run_workers(c.workers, "pipeline.worker", [stage, *named, *more], self.root, c.threads)
        return True

    def embedder(self, seed: int, clustering: ClusteringParams | None = None) -> Embed:
        """Return the feature map of a clustering: pixels, an untrained or a briefly trained network's features.

        ``clustering`` is that of the clustering stage by default.
        """
        clustering = clustering or self.params.clustering()
        if clustering.features == "pixels":
            return lambda images: images.flatten(1)
        name, options = self.network
        model = self.compute.place(build(name, self.info, generator(seed, "clustering-network"), options))
        kernels = CompiledNetwork(model, self.compute)
        if clustering.features == "trained":
            data = self.split("train").to(self.compute.device)
            train_on_real(
                model, data, self.info, kernels, epochs=clustering.epochs, seed=derive(seed, "clustering-training")
            )
        info = self.info
        if clustering.features == "random_unnormalised":
            info = info.unbounded()
        return lambda images: embed(model, images, info, kernels)
