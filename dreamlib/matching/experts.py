"""Expert trajectories: networks trained on the real images, with their weights after every epoch (MTT's buffers)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork, Weights
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import write_atomically
from dreamlib._engine.progress import progress
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import CHUNK, DatasetInfo, LabeledImages, as_float
from dreamlib.networks import build
from dreamlib.settings import ExpertParams, digest
from dreamlib.training.augment import augmentation_for
from dreamlib.training.schedules import constant_lr
from dreamlib.training.trainer import TrainSettings, fit

FORMAT = "dreamlib-expert-2"
AGAIN = "make them with `python -m pipeline.stages.experts`"


class ExpertError(RuntimeError):
    """Expert trajectories are missing, torn, or of another network; the message names the command that makes them."""


def data_fingerprint(data: LabeledImages) -> str:
    """Return the SHA-256 of all images, in floating point, and labels."""
    content = hashlib.sha256()
    for tensor in (*data.images.split(CHUNK), data.labels):
        content.update(as_float(tensor.detach().cpu()).contiguous().numpy())
    return content.hexdigest()


def expert_path(folder: str | Path, index: int) -> Path:
    """Return the file of one expert.

    >>> expert_path("experts", 7).as_posix()
    'experts/expert-007.safetensors'
    """
    return Path(folder) / f"expert-{index:03d}.safetensors"


def expert_folder(base: str | Path, whitening: str) -> Path:
    """Return the folder of experts trained on images after ``whitening``: one folder for each whitening.

    >>> expert_folder("experts", "none").as_posix(), expert_folder("experts", "zca").as_posix()
    ('experts', 'experts/zca')
    """
    return Path(base) if whitening == "none" else Path(base) / whitening


def train_experts(
    folder: str | Path,
    data: LabeledImages,
    info: DatasetInfo,
    network: tuple[str, dict[str, Any]],
    settings: ExpertParams,
    compute: Compute,
    *,
    seed: int,
    code_hash: str = "",
) -> list[Path]:
    """Train the experts that are missing in ``folder``; return the files, one per expert.

    data: the real images that the experts see; ``settings.images`` is the caller's choice of them.

    A file holds a key of what made it (settings, network, data, format, seed, ``code_hash``) and is reused only if the
    key is the same. Files are written atomically, each when its expert is done, so a killed run continues with the next
    one; files of experts beyond ``count`` are removed. Expert i depends only on (seed, i).
    """
    data_key = (info.name, info.whitening, info.mean, info.std, data_fingerprint(data))
    made_by = (settings.model_dump(exclude={"images", "count"}), network, *data_key, str(compute.dtype))
    common = digest(*made_by, seed, code_hash, FORMAT)  # the same for all experts; a key is one expert's
    placed, kernels, paths = data.to(compute.device), None, []
    with progress(settings.count * settings.epochs, "experts", unit="epoch") as bar:
        for index in range(settings.count):
            path, expert_seed = expert_path(folder, index), derive(seed, "expert", index)
            key = digest(*made_by, expert_seed, code_hash, FORMAT)
            paths.append(path)
            if _key_of(path) == key:
                bar.update(settings.epochs)
                continue
            model = compute.place(build(network[0], info, generator(expert_seed, "network"), network[1]))
            kernels = kernels or CompiledNetwork(model, compute)
            weights = _trajectory(model, placed, info, settings, kernels, expert_seed, bar.update)
            about = {"format": FORMAT, "key": key, "dataset": info.name, "network": list(network)}
            about |= {"whitening": info.whitening, "made_by": common}
            write_atomically(path, save(weights, metadata={"dreamlib": json.dumps(about, sort_keys=True)}))
    for path in set(Path(folder).glob("expert-*.safetensors")) - set(paths):
        path.unlink()
    return paths


def _trajectory(
    model: nn.Module,
    data: LabeledImages,
    info: DatasetInfo,
    settings: ExpertParams,
    kernels: CompiledNetwork,
    seed: int,
    on_epoch: Callable[[], object],
) -> Weights:
    """Return each parameter after 0, 1, … epochs: name → (epochs + 1, …)."""
    trajectory: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}

    def store() -> None:
        for name, p in model.named_parameters():
            trajectory[name].append(p.detach().cpu().clone(memory_format=torch.contiguous_format))

    def after_epoch() -> None:
        store()
        on_epoch()

    store()
    augmentation = augmentation_for(info, settings.augmentation, settings.mode)
    training = TrainSettings(settings.batch, settings.lr, settings.momentum, settings.weight_decay, augmentation)
    fit(
        model, data.images, data.labels, info, training, kernels,
        epochs=settings.epochs, seed=seed, schedule=constant_lr, on_epoch=after_epoch,
    )  # fmt: skip
    return {name: torch.stack(values) for name, values in trajectory.items()}


def _about(path: Path) -> dict[str, Any]:
    """Return the metadata of an expert's file; raises ExpertError when it is missing or torn."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["dreamlib"])
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ExpertError(f"{path} is no whole expert trajectory ({error}): delete it and {AGAIN}") from error
    return about


def _key_of(path: Path) -> str | None:
    """Return the key of an expert's file; None when it is missing or torn."""
    try:
        return _about(path)["key"]
    except ExpertError:
        return None


@dataclass(frozen=True)
class Experts:
    """A folder of trajectories; ``weights`` reads from disk only one expert's weights after one epoch."""

    paths: tuple[Path, ...]
    epochs: int

    @classmethod
    def open(cls, folder: str | Path, network: nn.Module, info: DatasetInfo) -> "Experts":
        """Return the experts in ``folder``.

        Raises ExpertError when there are none, or when they are of another data set, whitening or network.
        """
        paths = tuple(sorted(Path(folder).glob("expert-*.safetensors")))
        if not paths:
            raise ExpertError(f"no expert trajectories in {folder}: {AGAIN}")
        about = _about(paths[0])
        with safe_open(paths[0], "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if about["dataset"] != info.name:
            raise ExpertError(f"the experts in {folder} have seen {about['dataset']}, not {info.name}: {AGAIN}")
        if (whitening := about.get("whitening", "none")) != info.whitening:
            raise ExpertError(
                f"the experts in {folder} have seen images of whitening {whitening}, not {info.whitening}: {AGAIN}"
            )
        if {name: list(p.shape) for name, p in network.named_parameters()} != {n: s[1:] for n, s in shapes.items()}:
            raise ExpertError(f"the experts in {folder} are {about['network']}, not the network in use: {AGAIN}")
        return cls(paths, next(iter(shapes.values()))[0] - 1)

    def check_whole(self, count: int, epochs: int) -> None:
        """Raise ExpertError unless there are ``count`` experts of ``epochs`` epochs, all made with the same settings.

        An interrupted training leaves fewer, or files from an earlier training with other settings.
        """
        again = "run `python -m pipeline.stages.experts`, which makes what is missing"
        folder = self.paths[0].parent
        if (len(self.paths), self.epochs) != (count, epochs):
            raise ExpertError(
                f"{folder} holds {len(self.paths)} experts of {self.epochs} epochs where params.yaml asks for {count} "
                f"of {epochs}: {again}, or change count and epochs under experts"
            )
        if len({_about(path).get("made_by") for path in self.paths}) > 1:
            raise ExpertError(f"{folder} holds experts made under different settings or data: {again}")

    def weights(self, expert: int, epoch: int, device: torch.device | str = "cpu") -> Weights:
        """Return parameters by name after ``epoch`` epochs, 0 ≤ epoch ≤ ``epochs``."""
        with safe_open(self.paths[expert], "pt") as file:
            return {name: file.get_slice(name)[epoch].to(device) for name in file.keys()}  # noqa: SIM118
