"""``python -m benchmarks``: library and plain reference interleaved; times to benchmarks/.

A file for each kind of device (``table.results_file``), so that one never stands in for another.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.cost import INTERVAL, NETWORK_STEPS, POOL, kmeans_operations
from benchmarks.reference import evaluation, matching_gradient, representatives
from benchmarks.table import clustered_images, results_file, spread
from benchmarks.work import INFO, fast_matching_gradient, matching_state
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import write_json
from dreamlib.data.types import LabeledImages
from dreamlib.distill import Distiller
from dreamlib.evaluation import evaluate
from dreamlib.networks import build
from dreamlib.networks.convnet import ConvNet, with_torchs_layers
from dreamlib.reference import training_step
from dreamlib.sampling.representatives import RepresentativeSampler
from dreamlib.settings import DistillParams, EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import augmentation_for
from dreamlib.training.features import embed
from dreamlib.training.trainer import Trainer, TrainSettings

REPEATS = 5
EVALUATIONS_OPS, DISTILLATIONS_OPS = "flip_color_crop_scale_rotate", "color_crop"  # of networks trained
CLASS_IMAGES = 5500  # Fashion-MNIST's, less the validation split
WHOLE = EvaluationParams(epochs=1000, repeats=5, parallel_networks=2)  # the paper budget's; measured once: minutes
AT_ONCE = WHOLE.parallel_networks  # classes matched side by side on the CPU too, as the paper budget has it
EVALUATED = WHOLE.model_copy(update={"epochs": 50, "repeats": 3})  # as often as anything; two at once, then one


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, a GPU's work in it done."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleaved(
    reference: Callable[[], object], fast: Callable[[], object], repeats: int = REPEATS, units: int = 1
) -> dict[str, Any]:
    """Both in turn, ``repeats`` times; the first call of each, where compilation happens, is reported apart.

    What is measured but once has no first call apart: it must be compiled already. One call of ``fast`` does ``units``
    times the work of one of ``reference``, and the times are of one such unit.
    """
    warm = {"reference": seconds(reference), "fast": seconds(fast)} if repeats > 1 else {}
    pairs = [(seconds(reference), seconds(fast) / units) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "first_call_s": warm,
        "reference_s": statistics.median(a for a, _ in pairs),
        "fast_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of this machine's matrix product in a format, at the size it does best."""
    sides = (8192,) if device.type == "cuda" else (512, 1024, 2048, 4096)
    return max(product_flops(torch.rand(side, side).to(device, dtype)) for side in sides)


def product_flops(a: Tensor) -> float:
    """Operations a second of a square matrix times itself: the best of ``REPEATS``, short ones several times over."""
    out, times = a @ a, max(1, 4096 // len(a))
    took = min(seconds(lambda: [torch.mm(a, a, out=out) for _ in range(times)]) for _ in range(REPEATS))
    return 2 * len(a) ** 3 * times / took


def convolution_flops(compute: Compute) -> dict[str, float]:
    """Operations a second of the ConvNet's largest convolution and of its gradients, of 128 images: best of REPEATS.

    It takes 128 maps of 16 × 16 to as many, and is what most of the operations of matching and training are.
    """
    rng = torch.Generator().manual_seed(0)
    x, upstream = (compute.cast(torch.rand(128, 128, 16, 16, generator=rng)) for _ in range(2))
    weight = torch.rand(128, 128, 3, 3, generator=rng).to(compute.device, compute.dtype)
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: torch.conv2d(x, weight, padding=1),
        "input": lambda: torch.nn.grad.conv2d_input(x.shape, weight, upstream, padding=1),
        "weight": lambda: torch.nn.grad.conv2d_weight(x, weight.shape, upstream, padding=1),
    }
    operations = 2 * x.numel() * weight[0].numel()
    return {name: operations / min(seconds(work) for _ in range(1 + REPEATS)) for name, work in works.items()}


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


def counted(work: Callable[[], object], dtype: torch.dtype) -> dict[str, int]:
    """Operations of the convolutions and products of eager work, and the bytes they must move in a format."""
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        work()
    return {"operations": counter.get_total_flops(), "bytes": dtype.itemsize * traffic.numbers}


def matching(compute: Compute, ipc: int, real: int) -> dict[str, Any]:
    """A matching step over 10 classes."""
    plain, quick = matching_state(Compute(compute.device), ipc, real), matching_state(compute, ipc, real)
    at_once_and_threads, compiled = (), 0.0
    if compute.device.type == "cpu":
        threads = torch.get_num_threads() // AT_ONCE
        at_once_and_threads = AT_ONCE, threads
        compiled = seconds(lambda: fast_matching_gradient(quick, 1, threads))  # not by two threads at once
    row = interleaved(lambda: matching_gradient(plain), lambda: fast_matching_gradient(quick, *at_once_and_threads))
    row["first_call_s"]["fast"] += compiled
    return {
        "work": f"matching, ipc {ipc}, {real} real",
        **counted(lambda: matching_gradient(plain), compute.dtype),
        "images_per_s": INFO.num_classes * (real + min(4 * ipc, 128)) / row["fast_s"],
        **row,
    }


def plain_network(compute: Compute) -> ConvNet:
    """The network of the measurements, of torch's own layers."""
    return with_torchs_layers(build("convnet", INFO, torch.Generator().manual_seed(1), {})).to(compute.device)


def training_batch(compute: Compute, batch: int) -> tuple[Tensor, Tensor]:
    """Images (batch, 1, 28, 28) of random pixels, and labels."""
    images = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(compute.device)
    return images, torch.arange(batch).to(compute.device) % INFO.num_classes


def plain_training(compute: Compute, batch: int, steps: int, ops: str = EVALUATIONS_OPS) -> Callable[[], None]:
    """The reference's ``steps`` training steps, with the augmentation ``ops``."""
    (x, y), rng, plain = training_batch(compute, batch), torch.Generator().manual_seed(0), plain_network(compute)
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
    augmentation = augmentation_for(INFO, ops)

    def work() -> None:
        for _ in range(steps):
            draw = augmentation.draw(batch, (1, 28, 28), rng)
            training_step(plain, optimizer, augmentation.apply(INFO.normalise(x), draw), y, 0.0, rng)

    return work


def training(compute: Compute, batch: int, steps: int) -> dict[str, Any]:
    """``steps`` training steps of the evaluated network with the evaluation's augmentation, drawn for each image."""
    rng = torch.Generator().manual_seed(0)
    x, y = training_batch(compute, batch)
    model = compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {}))
    settings = TrainSettings(batch, augmentation=augmentation_for(INFO, EVALUATIONS_OPS))
    trainer, reference = (
        Trainer(model, INFO, settings, CompiledNetwork(model, compute)),
        plain_training(compute, batch, steps),
    )
    row = interleaved(reference, lambda: trainer.train(x, y, lambda: torch.arange(batch), steps, rng))
    return {
        "work": f"training, {steps} steps of {batch}",
        **counted(reference, compute.dtype),
        "images_per_s": batch * steps / row["fast_s"],
        **row,
    }


def clustering(compute: Compute, pool: int, real: int) -> dict[str, Any]:
    """Representatives: features and k-means; of all images for the reference, of ``pool`` (0: all) for ours.

    Of one class, or on a GPU, which clusters them together, of all.
    """
    classes = INFO.num_classes if compute.device.type == "cuda" else 1
    images = torch.rand(classes * CLASS_IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = plain_network(compute)
    model = compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {}))
    kernels = CompiledNetwork(model, compute)
    data = LabeledImages(images, torch.arange(classes).repeat_interleave(CLASS_IMAGES), classes).to(compute.device)
    sampler = RepresentativeSampler(data, real, 0, interval=1, pool=pool)
    normal = INFO.normalise(data.images)

    def reference() -> None:
        for class_images in normal.split(CLASS_IMAGES):
            representatives(plain, class_images, real)

    def fast() -> None:
        sampler.prepare(1, lambda x: embed(model, x, INFO, kernels))

    row = interleaved(reference, fast)
    # A network's features, and at most 10 iterations of distances and means in 2048 dimensions.
    count, features = classes * (pool or CLASS_IMAGES), 2048
    embedding = counted(lambda: plain.features(normal[:64]), compute.dtype)
    flops = embedding["operations"] * count // 64 + kmeans_operations(count, real, features)
    moved = embedding["bytes"] * count // 64 + 10 * 2 * compute.dtype.itemsize * count * features
    clustered = "a class" if classes == 1 else f"{classes} classes"
    return {
        "work": f"clustering {clustered} into {real}, {clustered_images(pool)}",
        "classes": classes,
        "operations": flops,
        "bytes": moved,
        "images_per_s": count / row["fast_s"],
        **row,
    }


def evaluating(compute: Compute, protocol: EvaluationParams, repeats: int = REPEATS) -> dict[str, Any]:
    """An evaluation whole, at ipc 1: networks built, trained on 40 decoded images, asked for 1000 predictions."""
    rng, k = torch.Generator().manual_seed(0), INFO.num_classes
    synthetic = SyntheticSet(torch.rand(k, 1, 28, 28, generator=rng), torch.arange(k), k, 2)
    against = LabeledImages(torch.rand(1000, 1, 28, 28, generator=rng), torch.arange(1000) % k, k)
    row = interleaved(
        lambda: evaluation(synthetic, against, INFO, protocol, 128, 0),
        lambda: evaluate(synthetic, against, INFO, protocol, ("convnet", {}), compute, seed=0, split="none"),
        repeats,
    )
    return {
        "work": f"evaluation, ipc 1, {protocol.epochs} epochs, {protocol.repeats} networks, "
        f"{protocol.parallel_networks} at once",
        "images_per_s": protocol.epochs * protocol.repeats * 4 * k / row["fast_s"],
        "once": repeats == 1,
        **row,
    }


def scaled(row: dict[str, Any], factor: float) -> dict[str, float]:
    """The times, operations and bytes of a row for ``factor`` times its work."""
    return {key: row[key] * factor for key in ("reference_s", "fast_s", "operations", "bytes")}


def total(work: str, *parts: dict[str, float], images: float) -> dict[str, Any]:
    """A row computed from measured ones: the sums of their times, operations and bytes; ``images`` enter them."""
    sums = {key: sum(part[key] for part in parts) for key in parts[0]}
    ratios = {"ratio": sums["reference_s"] / sums["fast_s"], "images_per_s": images / sums["fast_s"]}
    return {"work": work, "computed": True, **sums, **ratios}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself, where Linux tells; else what Python knows of it."""
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.is_file() else []
    return names[0].split(":")[-1].strip() if names else platform.processor() or platform.machine()


def resident_bytes(ipc: int) -> int:
    """Peak memory above the import of torch of a process that matches at ``ipc`` with 128 real images a class."""
    command = [sys.executable, "-m", "benchmarks.memory", str(ipc)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def dream(compute: Compute, ipc: int, pool: int, iterations: int) -> Distiller:
    """A run of DREAM by the whole library, on one network, after the iterations that compile and record everything.

    Random pixels at the size of Fashion-MNIST; networks are trained with IDC's augmentation.
    """
    rng, k = torch.Generator().manual_seed(0), INFO.num_classes
    labels = torch.arange(k).repeat_interleave(CLASS_IMAGES)
    data = LabeledImages(torch.rand(k * CLASS_IMAGES, 1, 28, 28, generator=rng), labels, k)
    start = SyntheticSet(torch.rand(k * ipc, 1, 28, 28, generator=rng), torch.arange(k).repeat_interleave(ipc), k, 2)
    settings = DistillParams(
        objective="gradient", sampler="representative", real_batch=128, interval=INTERVAL, pool=pool, snapshots=0,
        outer_iterations=1, inner_iterations=iterations + 2 * INTERVAL, network_steps=NETWORK_STEPS, network_batch=128,
        image_update="once_equivalent", image_lr=1e-5, cutmix=0.0, network_augmentation=DISTILLATIONS_OPS,
        parallel_classes=AT_ONCE,
    )  # fmt: skip
    run = Distiller(start, data, INFO, settings, ("convnet", {}), compute, 0)
    for _ in range(2 * INTERVAL):
        run.step()
    return run


def run_of(compute: Compute, ipc: int, pool: int, iterations: int = 200) -> dict[str, Any]:
    """Seconds of an iteration of ``dream``, none of which is waited for on its own."""
    run = dream(compute, ipc, pool, iterations)
    torch.cuda.synchronize()
    took = seconds(run.run)  # goes on to the end
    return {"ipc": ipc, "pool": pool, "iterations": iterations, "iteration_s": took / iterations}


def iteration(compute: Compute, ipc: int, pool: int) -> dict[str, Any]:
    """An iteration of ``dream`` with its share of clustering: the mean of those between two clusterings.

    For the plain loop a matching step, the training steps, and one class's clustering, as there are as many classes as
    iterations from one clustering to the next.
    """
    assert INFO.num_classes == INTERVAL
    plain = matching_state(Compute(compute.device), ipc, 128)
    train = plain_training(compute, 128, NETWORK_STEPS, DISTILLATIONS_OPS)
    network, images = plain_network(compute), INFO.normalise(torch.rand(CLASS_IMAGES, 1, 28, 28))
    run = dream(compute, ipc, pool, (1 + REPEATS) * INTERVAL + 1)  # the last iteration of a network trains nothing
    before = dict(run.seconds)
    row = interleaved(
        lambda: (matching_gradient(plain), train(), representatives(network, images, 128)),
        lambda: [run.step() for _ in range(INTERVAL)],
        units=INTERVAL,
    )
    took = {part: run.seconds[part] - before.get(part, 0.0) for part in run.seconds}
    return {"clustering_share": took["clustering"] / sum(took.values()), **row}


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--short", action="store_true", help="without what is measured once and takes a quarter hour")
    args = parser.parse_args(arguments)
    on_cpu = args.device == "cpu"
    compute = Compute.resolve("cpu" if on_cpu else "cuda", "auto", 2 if on_cpu else 0, True)
    peak = {name: peak_flops(getattr(torch, name), compute.device) for name in {"float32", compute.precision}}
    sizes = ((1, 64), (1, 128), (10, 128), (50, 128)) if on_cpu else ((1, 128), (10, 128))
    match = {size: matching(compute, *size) for size in sizes}
    step = training(compute, 128, 5)
    cluster = {pool: clustering(compute, pool, 128) for pool in (0, POOL)}
    measured = [*match.values(), step, *([training(compute, 40, 25)] if on_cpu else []), *cluster.values()]
    bandwidth, whole = peak_bandwidth(compute.device), {}
    for ipc in (1, 10):
        for pool, row in cluster.items():
            clustered = scaled(row, INFO.num_classes / row["classes"] / INTERVAL)
            images = INFO.num_classes * (128 + min(4 * ipc, 128) + (pool or CLASS_IMAGES) / INTERVAL)
            iteration_row = total(
                f"DREAM iteration, ipc {ipc}, 128 real, {clustered_images(pool)}",
                scaled(match[ipc, 128], 1),
                scaled(step, NETWORK_STEPS / 5),
                clustered,
                images=images + NETWORK_STEPS * 128,
            )
            iteration_row["clustering_share"] = clustered["fast_s"] / iteration_row["fast_s"]
            if on_cpu and pool:  # whole, where it takes minutes and not a quarter of an hour
                iteration_row |= {"computed": False, **iteration(compute, ipc, pool)}
                iteration_row["images_per_s"] = (images + NETWORK_STEPS * 128) / iteration_row["fast_s"]
            whole[ipc, pool] = iteration_row
    if on_cpu:
        measured.append(evaluating(compute, EVALUATED))
        if not args.short:
            measured.append(evaluating(compute, WHOLE, repeats=1))
    result = {
        "machine": {**compute.describe(), "cpu": cpu_name()},
        "peak_flops": peak,
        "peak_bytes_per_s": bandwidth,
        "repeats": REPEATS,
        "parallel_classes": AT_ONCE,
        "rows": [*measured, *whole.values()],
    }
    if on_cpu:
        result["convolution_flops"] = convolution_flops(compute)
        result["memory_above_torch_bytes"] = {str(ipc): resident_bytes(ipc) for ipc in (1, 50)}
    else:
        gc.collect()  # recordings that refer to themselves
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # Each beside the plain loop's parts, timed in the same minutes.
        result["runs"] = [
            run_of(compute, *size) | {key: row[key] for key in ("reference_s", "operations")}
            for size, row in whole.items()
        ]
        result["device_memory_bytes"] = torch.cuda.max_memory_reserved()
    write_json(results_file(compute.device.type, compute.precision), result)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    print(f"{'work':46}{'reference s':>12}{'fast s':>10}{'ratio':>7}  range")
    for row in result["rows"]:
        times = f"{row['reference_s']:12.4f}{row['fast_s']:10.4f}{row['ratio']:7.2f}"
        print(f"{row['work']:46}{times}  {spread(row)}")


if __name__ == "__main__":
    main()
