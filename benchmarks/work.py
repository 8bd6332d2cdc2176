"""The pieces of work that are timed and compared: a matching step and a training step of given sizes."""

from dataclasses import replace

import torch
from torch import Tensor

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.strategies import MatchingStep, SideBySide, Strategy
from dreamlib._engine.threads import Workers
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching import MatchState, make
from dreamlib.networks import build
from dreamlib.sampling.real_batches import RandomSampler
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for

INFO = DatasetInfo("random", tuple("0123456789"), 1, 28, (0.5,), (0.3,))


def matching_state(
    compute: Compute, ipc: int, real: int, *, factor: int = 2, width: int = 128, info: DatasetInfo = INFO
) -> MatchState:
    """A matching step's inputs on random pixels (the time does not depend on them); the same for the same sizes."""
    rng, k = torch.Generator().manual_seed(0), info.num_classes
    shape = (info.channels, info.size, info.size)
    wide = torch.float64 if compute.dtype == torch.float64 else torch.float32
    labels = torch.arange(k).repeat_interleave(real)
    data = LabeledImages(torch.rand(k * real, *shape, generator=rng).to(wide), labels, k).to(compute.device)
    canvases = torch.rand(k * ipc, *shape, generator=rng).to(compute.device, wide).requires_grad_(True)
    synthetic = SyntheticSet(canvases, torch.arange(k).repeat_interleave(ipc), k, factor)
    network = compute.place(build("convnet", info, torch.Generator().manual_seed(1), {"width": width}))
    return MatchState(
        synthetic, network, CompiledNetwork(network, compute), RandomSampler(data, real, 0), info,
        augmentation_for(info, "color_crop_cutout"), 0, 0, 128, together=compute.device.type == "cuda",
    )  # fmt: skip


def fast_matching_gradient(state: MatchState, parallel_classes: int = 1, threads: int = 0) -> tuple[Tensor, Tensor]:
    """What ``reference.matching_gradient`` gives, by the library's own objective.

    With ``threads``, ``parallel_classes`` classes are computed at a time, each on so many of them.
    """
    canvases, total = state.synthetic.canvases, torch.zeros((), device=state.synthetic.canvases.device)
    canvases.grad, objective = None, make("gradient", {"distance": "mse"})
    step = MatchingStep(
        "gradient",
        lambda classes, network, kernels: objective.losses(
            replace(state, classes=classes, network=network, kernels=kernels)
        ),
        state.network,
        [canvases],
    )
    kind, workers = (SideBySide, Workers(parallel_classes, threads, {"matching"})) if threads else (Strategy, Workers())
    for _label, loss in kind(state.kernels, state.classes, state.info.num_classes, workers).match(step):
        total = total + loss.sum()
    assert canvases.grad is not None
    return total, canvases.grad
