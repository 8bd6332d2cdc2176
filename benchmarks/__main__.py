"""``python -m benchmarks``: times of library and plain reference, interleaved, to benchmarks/results.json."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import matching_gradient, training_step
from benchmarks.work import INFO, fast_matching_gradient, matching_state
from dreamlib.compute import Compute, peak_memory_bytes
from dreamlib.files import write_json
from dreamlib.kernels import Kernels
from dreamlib.networks import build
from dreamlib.training import Trainer, TrainSettings

REPEATS = 5
RESULTS = Path(__file__).parent / "results.json"


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(reference: Callable[[], object], fast: Callable[[], object]) -> dict[str, Any]:
    """Both in turn, ``REPEATS`` times; the first call of each, where compilation happens, is reported apart."""
    warm = {"reference": seconds(reference), "fast": seconds(fast)}
    pairs = [(seconds(reference), seconds(fast)) for _ in range(REPEATS)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "first_call_s": warm,
        "reference_s": statistics.median(a for a, _ in pairs),
        "fast_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def peak_flops(dtype: torch.dtype, side: int = 2048) -> float:
    """Operations a second of this machine's matrix product in a format: the best of ``REPEATS``."""
    a = torch.rand(side, side).to(dtype)
    a @ a
    return 2 * side**3 / min(seconds(lambda: a @ a) for _ in range(REPEATS))


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and products of eager work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matching(compute: Compute, ipc: int, real: int) -> dict[str, Any]:
    """A matching step over 10 classes."""
    plain, quick = matching_state(Compute.resolve("cpu"), ipc, real), matching_state(compute, ipc, real)
    row = interleaved(lambda: matching_gradient(plain), lambda: fast_matching_gradient(quick))
    return {
        "work": f"matching, ipc {ipc}, {real} real",
        "operations": operations(lambda: matching_gradient(plain)),
        **row,
    }


def training(compute: Compute, batch: int, steps: int) -> dict[str, Any]:
    """``steps`` training steps of the evaluated network, without augmentation."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28, generator=rng), torch.arange(batch) % 10
    plain = build("convnet", INFO, torch.Generator().manual_seed(1), {})
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
    model = compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {}))
    trainer = Trainer(model, INFO, TrainSettings(batch), Kernels(model, compute))
    normal = INFO.normalise(x)

    def reference() -> None:
        for _ in range(steps):
            training_step(plain, optimizer, normal, y)

    def fast() -> None:
        for _ in range(steps):
            trainer.step(x, y, rng)

    row = interleaved(reference, fast)
    return {"work": f"training, {steps} steps of {batch}", "operations": operations(reference), **row}


def main() -> None:
    """Measure, write the file, print the table."""
    compute = Compute.resolve("cpu", "bfloat16", 2, True)
    peak = {name: peak_flops(getattr(torch, name)) for name in ("float32", "bfloat16")}
    rows = [matching(compute, 1, 64), matching(compute, 1, 128), matching(compute, 10, 128), training(compute, 40, 25)]
    for row in rows:
        row["floor_s"] = row["operations"] / peak["bfloat16"]
    machine = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "unknown")
    result = {
        "machine": {**compute.describe(), "cpu": machine.split(":")[-1].strip()},
        "peak_flops": peak,
        "repeats": REPEATS,
        "peak_memory_bytes": peak_memory_bytes(),
        "rows": rows,
    }
    write_json(RESULTS, result)
    print(json.dumps(result["machine"]))
    print(f"{'work':34}{'reference s':>12}{'fast s':>9}{'floor s':>9}{'ratio':>7}  range")
    for row in rows:
        low, high = row["ratio_range"]
        print(
            f"{row['work']:34}{row['reference_s']:12.3f}{row['fast_s']:9.3f}{row['floor_s']:9.3f}"
            f"{row['ratio']:7.2f}  {low:.2f} to {high:.2f}"
        )


if __name__ == "__main__":
    main()
