"""``python -m benchmarks``: library and plain reference interleaved; times to results.json and README.

On a GPU (``--device cuda``): the times to results-cuda.json.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.cost import INTERVAL, NETWORK_STEPS, POOL, kmeans_operations
from benchmarks.reference import evaluation, matching_gradient, representatives, training_step, with_torchs_layers
from benchmarks.table import CUDA_RESULTS, RESULTS, clustered_images, spread, write
from benchmarks.work import INFO, fast_matching_gradient, matching_state
from dreamlib.compute import Compute
from dreamlib.distill import Distiller
from dreamlib.evaluate import evaluate
from dreamlib.files import write_json
from dreamlib.kernels import Kernels
from dreamlib.networks import build
from dreamlib.params import DistillParams, EvaluationParams
from dreamlib.sampling import RepresentativeSampler
from dreamlib.synthetic import SyntheticSet
from dreamlib.training import Trainer, TrainSettings, augmentation_for, embed
from dreamlib.types import LabeledImages

REPEATS = 5
CLASS_IMAGES = 5500  # Fashion-MNIST's, less the validation split
WHOLE = EvaluationParams(epochs=1000, repeats=5, at_once=2)  # the paper budget's; measured once: minutes
EVALUATED = WHOLE.model_copy(update={"epochs": 50, "repeats": 3})  # as often as anything; two at once, then one


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, a GPU's work in it done."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleaved(reference: Callable[[], object], fast: Callable[[], object], repeats: int = REPEATS) -> dict[str, Any]:
    """Both in turn, ``repeats`` times; the first call of each, where compilation happens, is reported apart.

    What is measured but once has no first call apart: it must be compiled already.
    """
    warm = {"reference": seconds(reference), "fast": seconds(fast)} if repeats > 1 else {}
    pairs = [(seconds(reference), seconds(fast)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "first_call_s": warm,
        "reference_s": statistics.median(a for a, _ in pairs),
        "fast_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of this machine's matrix product in a format: the best of ``REPEATS``."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.rand(side, side).to(device, dtype)
    a @ a
    return 2 * side**3 / min(seconds(lambda: a @ a) for _ in range(REPEATS))


def peak_bandwidth(device: torch.device) -> float:
    """Bytes a second of copying memory that no cache holds, read and written counted: the best of ``REPEATS``."""
    size = 2**31 if device.type == "cuda" else 2**28
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = a.clone()
    return 2 * size / min(seconds(lambda: b.copy_(a)) for _ in range(REPEATS))


class _Traffic(TorchDispatchMode):
    """Counts the numbers that the convolutions and products of eager work take and give, each once."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.numbers += sum(x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
        return out


def counted(work: Callable[[], object]) -> dict[str, int]:
    """Operations of the convolutions and products of eager work, and the bytes in half precision they must move."""
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        work()
    return {"operations": counter.get_total_flops(), "bytes": 2 * traffic.numbers}


def matching(compute: Compute, ipc: int, real: int) -> dict[str, Any]:
    """A matching step over 10 classes."""
    plain, quick = matching_state(Compute(compute.device), ipc, real), matching_state(compute, ipc, real)
    row = interleaved(lambda: matching_gradient(plain), lambda: fast_matching_gradient(quick))
    return {
        "work": f"matching, ipc {ipc}, {real} real",
        **counted(lambda: matching_gradient(plain)),
        "images_per_s": INFO.num_classes * (real + min(4 * ipc, 128)) / row["fast_s"],
        **row,
    }


def training(compute: Compute, batch: int, steps: int) -> dict[str, Any]:
    """``steps`` training steps of the evaluated network with the evaluation's augmentation, drawn for each image."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28, generator=rng).to(compute.device), torch.arange(batch).to(compute.device) % 10
    plain = with_torchs_layers(build("convnet", INFO, torch.Generator().manual_seed(1), {})).to(compute.device)
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
    model = compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {}))
    augmentation = augmentation_for(INFO, "flip_color_crop_scale_rotate")
    trainer = Trainer(model, INFO, TrainSettings(batch, augmentation=augmentation), Kernels(model, compute))

    def reference() -> None:
        for _ in range(steps):
            draw = augmentation.draw(batch, (1, 28, 28), rng)
            training_step(plain, optimizer, augmentation.apply(INFO.normalise(x), draw), y)

    def fast() -> None:
        trainer.train(x, y, lambda: torch.arange(batch), steps, rng)

    row = interleaved(reference, fast)
    return {
        "work": f"training, {steps} steps of {batch}",
        **counted(reference),
        "images_per_s": batch * steps / row["fast_s"],
        **row,
    }


def clustering(compute: Compute, pool: int, real: int, *, warm: bool = False, pooled: bool = False) -> dict[str, Any]:
    """Representatives: features and k-means; of all images for the reference, of ``pool`` (0: all) for ours.

    Of one class, or on a GPU, which clusters them together, of all. ``warm`` goes on from the centres found before the
    network was trained for as long as between two clusterings of DREAM; ``pooled`` clusters features averaged over
    space.
    """
    classes = INFO.num_classes if compute.device.type == "cuda" else 1
    images = torch.rand(classes * CLASS_IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = with_torchs_layers(build("convnet", INFO, torch.Generator().manual_seed(1), {})).to(compute.device)
    model = compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {}))
    kernels = Kernels(model, compute)
    data = LabeledImages(images, torch.arange(classes).repeat_interleave(CLASS_IMAGES), classes).to(compute.device)
    sampler = RepresentativeSampler(data, real, 0, interval=1, pool=pool, warm_start=warm)
    normal = INFO.normalise(data.images)

    def reference() -> None:
        for own in normal.split(CLASS_IMAGES):
            representatives(plain, own, real)

    def fast() -> None:
        sampler.centers = dict(centers)
        sampler.prepare(1, lambda x: embed(model, x, INFO, kernels, pooled=pooled))

    if warm:
        sampler.prepare(0, lambda x: embed(model, x, INFO, kernels, pooled=pooled))
        trainer, rng = Trainer(model, INFO, TrainSettings(128), kernels), torch.Generator().manual_seed(2)
        for _ in range(INTERVAL * NETWORK_STEPS):
            rows = torch.randint(CLASS_IMAGES, (128,), generator=rng).to(compute.device)
            trainer.step(data.images[rows], rows % INFO.num_classes, rng)
    centers = dict(sampler.centers)
    row = interleaved(reference, fast)
    # A network's features, and at most 10 iterations of distances and means in 2048 dimensions, or 128.
    count, features = classes * (pool or CLASS_IMAGES), 128 if pooled else 2048
    embedding = counted(lambda: plain.features(normal[:64]))
    flops = embedding["operations"] * count // 64 + kmeans_operations(count, real, features)
    moved = embedding["bytes"] * count // 64 + 10 * 2 * 2 * count * features
    named = f"{clustered_images(pool)}{', warm' if warm else ''}{', pooled' if pooled else ''}"
    return {
        "work": f"clustering {'a class' if classes == 1 else f'{classes} classes'} into {real}, {named}",
        "classes": classes,
        "operations": flops,
        "bytes": moved,
        "images_per_s": count / row["fast_s"],
        **row,
    }


def evaluating(compute: Compute, how: EvaluationParams, repeats: int = REPEATS) -> dict[str, Any]:
    """An evaluation whole, at ipc 1: networks built, trained on 40 decoded images, asked for 1000 predictions."""
    rng, k = torch.Generator().manual_seed(0), INFO.num_classes
    synthetic = SyntheticSet(torch.rand(k, 1, 28, 28, generator=rng), torch.arange(k), k, 2)
    against = LabeledImages(torch.rand(1000, 1, 28, 28, generator=rng), torch.arange(1000) % k, k)
    row = interleaved(
        lambda: evaluation(synthetic, against, INFO, how, 128, 0),
        lambda: evaluate(synthetic, against, INFO, how, ("convnet", {}), compute, seed=0, split="none"),
        repeats,
    )
    return {
        "work": f"evaluation, ipc 1, {how.epochs} epochs, {how.repeats} networks, {how.at_once} at once",
        "images_per_s": how.epochs * how.repeats * 4 * k / row["fast_s"],
        "once": repeats == 1,
        **row,
    }


def scaled(row: dict[str, Any], factor: float) -> dict[str, float]:
    """The times and operations of a row for ``factor`` times its work."""
    return {key: row[key] * factor for key in ("reference_s", "fast_s", "operations")}


def total(work: str, *parts: dict[str, float], images: float) -> dict[str, Any]:
    """A row computed from measured ones: the sums of their times and operations, over ``images`` that enter them."""
    times = {key: sum(part[key] for part in parts) for key in ("reference_s", "fast_s")}
    ratios = {"ratio": times["reference_s"] / times["fast_s"], "images_per_s": images / times["fast_s"]}
    operations = sum(part["operations"] for part in parts)
    return {"work": work, "computed": True, "operations": operations, **times, **ratios}


def resident_bytes(ipc: int) -> int:
    """Peak memory above the import of torch of a process that matches at ``ipc`` with 128 real images a class."""
    command = [sys.executable, "-m", "benchmarks.memory", str(ipc)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_of(compute: Compute, ipc: int, pool: int, iterations: int = 200) -> dict[str, Any]:
    """Seconds of an iteration in a run of the whole library, after the first, which compile and record everything.

    Random pixels at the size of Fashion-MNIST; networks are trained with IDC's augmentation and CutMix.
    """
    rng, k = torch.Generator().manual_seed(0), INFO.num_classes
    labels = torch.arange(k).repeat_interleave(CLASS_IMAGES)
    data = LabeledImages(torch.rand(k * CLASS_IMAGES, 1, 28, 28, generator=rng), labels, k)
    start = SyntheticSet(torch.rand(k * ipc, 1, 28, 28, generator=rng), torch.arange(k).repeat_interleave(ipc), k, 2)
    settings = DistillParams(
        objective="gradient", sampler="representative", real_batch=128, interval=INTERVAL, pool=pool, snapshots=0,
        outer_iterations=1, inner_iterations=iterations + 2 * INTERVAL, network_steps=NETWORK_STEPS, network_batch=128,
        image_update="collapsed", image_lr=1e-5, cutmix=0.5, network_augmentation="flip_color_crop_cutout",
    )  # fmt: skip
    run = Distiller(start, data, INFO, settings, ("convnet", {}), compute, 0)
    for _ in range(2 * INTERVAL):
        run.step()
    torch.cuda.synchronize()
    took = seconds(run.run)  # goes on to the end
    return {"ipc": ipc, "pool": pool, "iterations": iterations, "iteration_s": took / iterations}


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    on_cpu = parser.parse_args(arguments).device == "cpu"
    compute = Compute.resolve("cpu" if on_cpu else "cuda", "bfloat16", 2 if on_cpu else 0, True)
    peak = {name: peak_flops(getattr(torch, name), compute.device) for name in ("float32", "bfloat16")}
    sizes = ((1, 64), (1, 128), (10, 128), (50, 128)) if on_cpu else ((1, 128), (10, 128))
    match = {size: matching(compute, *size) for size in sizes}
    step = training(compute, 128, 5)
    cluster = {pool: clustering(compute, pool, 128) for pool in (0, POOL)}
    options = [{"pool": POOL, "warm": True}, {"pool": 0, "pooled": True}, {"pool": POOL, "pooled": True}]
    clusters = [*cluster.values(), *(clustering(compute, real=128, **option) for option in options if on_cpu)]
    measured = [*match.values(), step, *([training(compute, 40, 25)] if on_cpu else []), *clusters]
    bandwidth = peak_bandwidth(compute.device)
    for row in measured:
        row["floor_s"] = row["operations"] / peak["bfloat16"]
        row["bytes_floor_s"] = row["bytes"] / bandwidth
    if on_cpu:
        measured += [evaluating(compute, EVALUATED), evaluating(compute, WHOLE, repeats=1)]
    computed = {}
    for ipc in (1, 10):
        for pool, row in cluster.items():
            clustered = scaled(row, INFO.num_classes / row["classes"] / INTERVAL)
            whole = total(
                f"DREAM iteration, ipc {ipc}, 128 real, {clustered_images(pool)}",
                scaled(match[ipc, 128], 1),
                scaled(step, NETWORK_STEPS / 5),
                clustered,
                images=INFO.num_classes * (128 + min(4 * ipc, 128) + (pool or CLASS_IMAGES) / INTERVAL)
                + NETWORK_STEPS * 128,
            )
            computed[ipc, pool] = {**whole, "clustering_share": clustered["fast_s"] / whole["fast_s"]}
    machine = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "unknown")
    result = {
        "machine": {**compute.describe(), "cpu": machine.split(":")[-1].strip()},
        "peak_flops": peak,
        "peak_bytes_per_s": bandwidth,
        "repeats": REPEATS,
        "rows": [*measured, *computed.values()],
    }
    if on_cpu:
        result["memory_above_torch_bytes"] = {str(ipc): resident_bytes(ipc) for ipc in (1, 50)}
    else:
        gc.collect()  # recordings that refer to themselves
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # Each beside the plain loop's parts, timed in the same minutes.
        result["runs"] = [
            run_of(compute, *size) | {key: row[key] for key in ("reference_s", "operations")}
            for size, row in computed.items()
        ]
        result["device_memory_bytes"] = torch.cuda.max_memory_reserved()
    write_json(RESULTS if on_cpu else CUDA_RESULTS, result)
    write()
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    print(f"{'work':46}{'reference s':>12}{'fast s':>10}{'floor s':>9}{'ratio':>7}  range")
    for row in result["rows"]:
        floor = f"{row['floor_s']:9.4f}" if "floor_s" in row else " " * 9
        times = f"{row['reference_s']:12.4f}{row['fast_s']:10.4f}{floor}{row['ratio']:7.2f}"
        print(f"{row['work']:46}{times}  {spread(row)}")


if __name__ == "__main__":
    main()
