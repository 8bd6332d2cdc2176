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
REMEDY = "make them with `python -m pipeline.stages.experts`"


class ExpertError(RuntimeError):
    """Expert trajectories are missing, damaged or of another network; the message names the command that makes them."""


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
    """Return the folder of experts trained on images with ``whitening``: one folder per whitening.

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

    data: the images to train on, already subsampled by the caller to ``settings.images`` per class.

    A file stores a key of everything it depends on (settings, network, data, format, seed, ``code_hash``) and is reused
    only if the key is the same. Files are written atomically, each when its expert is done, so a killed run continues
    with the next one; files of experts beyond ``count`` are removed. For given settings, network and data, expert i
    depends only on (seed, i).
    """
    data_key = (info.name, info.whitening, info.mean, info.std, data_fingerprint(data))
    inputs = (settings.model_dump(exclude={"images", "count"}), network, *data_key, str(compute.dtype))
    common = digest(*inputs, seed, code_hash, FORMAT)  # the same for all experts; a key is per expert
    placed, kernels, paths = data.to(compute.device), None, []
    with progress(settings.count * settings.epochs, "experts", unit="epoch") as bar:
        for index in range(settings.count):
            path, expert_seed = expert_path(folder, index), derive(seed, "expert", index)
            key = digest(*inputs, expert_seed, code_hash, FORMAT)
            paths.append(path)
            if _key_of(path) == key:
                bar.update(settings.epochs)
                continue
            model = compute.place(build(network[0], info, generator(expert_seed, "network"), network[1]))
            kernels = kernels or CompiledNetwork(model, compute)
            weights = _trajectory(model, placed, info, settings, kernels, expert_seed, bar.update)
            metadata = {"format": FORMAT, "key": key, "dataset": info.name, "network": list(network)}
            metadata |= {"whitening": info.whitening, "made_by": common}
            write_atomically(path, save(weights, metadata={"dreamlib": json.dumps(metadata, sort_keys=True)}))
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


def _metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of an expert's file; raise ExpertError if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["dreamlib"])
        if metadata["format"] != FORMAT:
            raise KeyError(metadata["format"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ExpertError(f"{path} is not a complete expert trajectory ({error}): delete it and {REMEDY}") from error
    return metadata


def _key_of(path: Path) -> str | None:
    """Return the key of an expert's file; None if it is missing or damaged."""
    try:
        return _metadata(path)["key"]
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

        Raise ExpertError if there are none, or if they are of another data set, whitening or network.
        """
        paths = tuple(sorted(Path(folder).glob("expert-*.safetensors")))
        if not paths:
            raise ExpertError(f"no expert trajectories in {folder}: {REMEDY}")
        metadata = _metadata(paths[0])
        with safe_open(paths[0], "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if metadata["dataset"] != info.name:
            raise ExpertError(
                f"the experts in {folder} were trained on {metadata['dataset']}, not {info.name}: {REMEDY}"
            )
        if (whitening := metadata.get("whitening", "none")) != info.whitening:
            raise ExpertError(
                f"the experts in {folder} were trained on images with whitening {whitening}, not {info.whitening}: "
                f"{REMEDY}"
            )
        if {name: list(p.shape) for name, p in network.named_parameters()} != {n: s[1:] for n, s in shapes.items()}:
            raise ExpertError(
                f"the experts in {folder} were trained with {metadata['network']}, not the network in use: {REMEDY}"
            )
        return cls(paths, next(iter(shapes.values()))[0] - 1)

    def check_complete(self, count: int, epochs: int) -> None:
        """Raise ExpertError unless there are ``count`` experts of ``epochs`` epochs, all made with the same settings.

        An interrupted run leaves fewer, or some from an earlier run with other settings.
        """
        remedy = "run `python -m pipeline.stages.experts`, which makes the missing ones"
        folder = self.paths[0].parent
        if (len(self.paths), self.epochs) != (count, epochs):
            raise ExpertError(
                f"{folder} holds {len(self.paths)} experts of {self.epochs} epochs; params.yaml specifies {count} "
                f"of {epochs}: {remedy}, or change count and epochs under experts"
            )
        if len({_metadata(path).get("made_by") for path in self.paths}) > 1:
            raise ExpertError(f"{folder} holds experts made with different settings or data: {remedy}")

    def weights(self, expert: int, epoch: int, device: torch.device | str = "cpu") -> Weights:
        """Return parameters by name after ``epoch`` epochs, 0 ≤ epoch ≤ ``epochs``."""
        with safe_open(self.paths[expert], "pt") as file:
            return {name: file.get_slice(name)[epoch].to(device) for name in file.keys()}  # noqa: SIM118
