"""Expert trajectories: networks trained on the real images, their weights kept after every epoch (MTT's buffers)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.settings import digest
from dreamlib.training.augment import augmentation_for
from dreamlib.training.trainer import TrainSettings, fit

FORMAT = "dreamlib-expert-2"
AGAIN = "make them with `python -m pipeline.stages.experts`"


class ExpertError(RuntimeError):
    """Expert trajectories that are missing, torn, or of another network; the message says how to make them."""


@dataclass(frozen=True)
class ExpertSettings:
    """``count`` networks trained for ``epochs`` epochs of plain SGD; the defaults are MTT's.

    ``augmentation`` and ``mode`` as in ``augmentation_for``; one draw an image.
    """

    count: int = 100
    epochs: int = 50
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    augmentation: str = "flip_color_crop_scale_rotate_cutout"
    mode: str = "dsa"

    def training(self, info: DatasetInfo) -> TrainSettings:
        """As settings of ``fit``."""
        augmentation = augmentation_for(info, self.augmentation, self.mode)
        return TrainSettings(self.batch, self.lr, self.momentum, self.weight_decay, augmentation)


def data_fingerprint(data: LabeledImages) -> str:
    """SHA-256 over the images and labels themselves."""
    content = hashlib.sha256()
    for tensor in (data.images, data.labels):
        content.update(tensor.detach().cpu().contiguous().numpy())
    return content.hexdigest()


def expert_path(folder: str | Path, index: int) -> Path:
    """Where one expert lies.

    >>> expert_path("experts", 7).as_posix()
    'experts/expert-007.safetensors'
    """
    return Path(folder) / f"expert-{index:03d}.safetensors"


def expert_folder(base: str | Path, whitening: str) -> Path:
    """Where the experts lie that saw images after ``whitening``: those of whitened images in a folder of their own.

    >>> expert_folder("experts", "none").as_posix(), expert_folder("experts", "zca").as_posix()
    ('experts', 'experts/zca')
    """
    return Path(base) if whitening == "none" else Path(base) / whitening


def train_experts(
    folder: str | Path,
    data: LabeledImages,
    info: DatasetInfo,
    network: tuple[str, dict[str, Any]],
    settings: ExpertSettings,
    compute: Compute,
    *,
    seed: int,
    code_hash: str = "",
) -> list[Path]:
    """Train whatever experts are not in ``folder`` yet; returns the files, one an expert.

    A file carries the key of what made it (settings, network, data, format, seed, ``code_hash``) and is used again only
    where the key is the same. Files are written whole or not at all, each when its expert is done, so a killed run goes
    on with the next; those of experts beyond ``count`` are removed. Expert i depends on (seed, i) alone.

    Raises ValueError for fewer than one expert or epoch.
    """
    if settings.count < 1 or settings.epochs < 1:
        raise ValueError(f"count = {settings.count} and epochs = {settings.epochs} of the experts must be at least 1")
    seen = (info.name, info.whitening, info.mean, info.std, data_fingerprint(data))
    made_by = (asdict(settings) | {"count": None}, network, *seen, str(compute.dtype))
    common = digest(*made_by, seed, code_hash, FORMAT)  # to all of them; a key is one expert's
    placed, kernels, paths = data.to(compute.device), None, []
    with progress(settings.count * settings.epochs, "experts", unit="epoch") as bar:
        for index in range(settings.count):
            path, own = expert_path(folder, index), derive(seed, "expert", index)
            key = digest(*made_by, own, code_hash, FORMAT)
            paths.append(path)
            if _key_of(path) == key:
                bar.update(settings.epochs)
                continue
            model = compute.place(build(network[0], info, generator(own, "network"), network[1]))
            kernels = kernels or CompiledNetwork(model, compute)
            weights = _trajectory(model, placed, info, settings, kernels, own, bar.update)
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
    settings: ExpertSettings,
    kernels: CompiledNetwork,
    seed: int,
    on_epoch: Callable[[], object],
) -> Weights:
    """Each parameter after 0, 1, … epochs: name → (epochs + 1, …)."""
    kept: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}

    def keep() -> None:
        for name, p in model.named_parameters():
            kept[name].append(p.detach().cpu().clone(memory_format=torch.contiguous_format))

    def after_epoch() -> None:
        keep()
        on_epoch()

    keep()
    fit(
        model, data.images, data.labels, info, settings.training(info), kernels,
        epochs=settings.epochs, seed=seed, schedule=lambda lr, _epoch, _epochs: lr, on_epoch=after_epoch,
    )  # fmt: skip
    return {name: torch.stack(values) for name, values in kept.items()}


def _about(path: Path) -> dict[str, Any]:
    """What an expert's file says of itself; raises ExpertError when there is none or it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["dreamlib"])
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ExpertError(f"{path} is no whole expert trajectory ({error}): delete it and {AGAIN}") from error
    return about


def _key_of(path: Path) -> str | None:
    """The key of a whole expert file; None when there is none or it cannot be read."""
    try:
        return _about(path)["key"]
    except ExpertError:
        return None


@dataclass(frozen=True)
class Experts:
    """A folder of trajectories; ``weights`` reads one expert's weights after one epoch, and nothing else."""

    paths: tuple[Path, ...]
    epochs: int

    @classmethod
    def open(cls, folder: str | Path, network: nn.Module, info: DatasetInfo) -> "Experts":
        """The experts in ``folder``, checked against the network that is to follow them.

        Raises ExpertError when there is none, or when they are of another data set, whitening or network.
        """
        paths = tuple(sorted(Path(folder).glob("expert-*.safetensors")))
        if not paths:
            raise ExpertError(f"no expert trajectories in {folder}: {AGAIN}")
        about = _about(paths[0])
        with safe_open(paths[0], "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if about["dataset"] != info.name:
            raise ExpertError(f"the experts in {folder} have seen {about['dataset']}, not {info.name}: {AGAIN}")
        if (saw := about.get("whitening", "none")) != info.whitening:
            raise ExpertError(
                f"the experts in {folder} have seen images of whitening {saw}, not {info.whitening}: {AGAIN}"
            )
        if {name: list(p.shape) for name, p in network.named_parameters()} != {n: s[1:] for n, s in found.items()}:
            raise ExpertError(f"the experts in {folder} are {about['network']}, not the network in use: {AGAIN}")
        return cls(paths, next(iter(found.values()))[0] - 1)

    def check_whole(self, count: int, epochs: int) -> None:
        """Refuse what is not ``count`` experts of ``epochs`` epochs, all of one making; raises ExpertError.

        A run of theirs that was stopped leaves fewer, or some of it beside those of an earlier one.
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
        """Parameters by name after ``epoch`` epochs, 0 ≤ epoch ≤ ``epochs``."""
        with safe_open(self.paths[expert], "pt") as file:
            return {name: file.get_slice(name)[epoch].to(device) for name in file.keys()}  # noqa: SIM118
