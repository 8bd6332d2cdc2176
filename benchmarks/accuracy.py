"""``python -m benchmarks.accuracy``: does what makes a run fast cost accuracy? Paired by seed, to accuracy.json.

DREAM as params.yaml sets it, for the same iterations, by the plain path (eager, float32, all images clustered) and by
the fast one (compiled, bfloat16 where the CPU has it, a pool of images clustered), and at the first ipc by the fast one
that clusters all images. Every set is evaluated on the validation images with the same networks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cost import POOL, START_STEPS
from benchmarks.reference import evaluation
from benchmarks.table import ACCURACY, ROOT
from dreamlib import data as datasets
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import read_json, write_json
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.distill import Distiller
from dreamlib.evaluation import evaluate
from dreamlib.networks import build
from dreamlib.sampling.representatives import cluster_class
from dreamlib.settings import DistillParams, EvaluationParams
from dreamlib.synthetic.initial import fill, images_needed
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import embed
from dreamlib.training.trainer import compiled_network
from pipeline.params import read_params

FAST = {"pool": POOL}
# name → whether it computes the fast way, and what it changes of the settings
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {"pool": 0}),
    "fast": (True, FAST),
    "fast, all": (True, {"pool": 0}),
}
# the difference that is asked for: of the first from the second
PAIRS = (("fast", "plain"), ("fast", "fast, all"))


def settings_of(ipc: int, iterations: int, real: int | None, changes: dict[str, Any]) -> DistillParams:
    """DREAM's of params.yaml at ``ipc``, for ``iterations`` inner iterations."""
    values = read_params(ROOT).distillation("dream", ipc).model_dump()
    inner = min(values["inner_iterations"], iterations)
    if iterations % inner:
        raise ValueError(
            f"--iterations {iterations} must be a multiple of {inner}, the inner iterations a network lasts"
        )
    length = {"inner_iterations": inner, "outer_iterations": iterations // inner, "snapshots": 0}
    return DistillParams(**{**values, **length, "real_batch": real or values["real_batch"], **changes})


def starting_set(
    data: LabeledImages, info: DatasetInfo, settings: DistillParams, ipc: int, width: int, compute: Compute, seed: int
) -> SyntheticSet:
    """Canvases of the real images nearest to k-means centres of an untrained network's features."""
    network = ("convnet", {"width": width})
    model = compute.place(build(*network[:1], info, generator(seed, "clustering-network"), network[1]))
    kernels = compiled_network(network, info, compute)
    return from_clusters(
        data, settings, ipc, seed, lambda x: embed(model, x, info, kernels), settings.pool, START_STEPS
    )


def from_clusters(
    data: LabeledImages,
    settings: DistillParams,
    ipc: int,
    seed: int,
    embedder: Callable[[Tensor], Tensor],
    pool: int,
    steps: int,
    pick: str = "members",
) -> SyntheticSet:
    """Canvases of the real images nearest to k-means centres of an embedder's features: see ``cluster_class``."""
    count = images_needed(ipc, settings.factor, settings.decode)
    clusters = [cluster_class(data, c, count, seed, embedder, pool, steps, pick) for c in range(data.num_classes)]
    rows = torch.stack([c.representatives for c in clusters])
    return fill(data, rows, ipc, settings.factor, settings.decode, settings.shrink)


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each ipc and pair of variants: the mean difference in accuracy, paired by seed, beside the seeds' spread.

    ``spread`` is the standard deviation of the second variant over seeds, ``std`` that of the differences.

    >>> rows = [dict(ipc=1, variant=v, seed=s, accuracy=a, seconds=1.0)
    ...         for v, s, a in [("fast", 0, 0.5), ("fast", 1, 0.8), ("plain", 0, 0.4), ("plain", 1, 0.8)]]
    >>> [{k: round(v, 3) for k, v in d.items() if k in ("difference", "std", "spread")} for d in differences(rows)]
    [{'difference': 0.05, 'std': 0.071, 'spread': 0.283}]
    """
    comparisons = []
    for ipc in dict.fromkeys(row["ipc"] for row in rows):
        of = {(row["variant"], row["seed"]): row for row in rows if row["ipc"] == ipc}
        seeds = sorted({seed for _, seed in of})
        for one, other in PAIRS:
            if any((name, seed) not in of for name in (one, other) for seed in seeds):
                continue  # not asked at this ipc, or not yet
            a, b = ([of[name, seed]["accuracy"] for seed in seeds] for name in (one, other))
            gaps = [x - y for x, y in zip(a, b, strict=True)]
            # The median, because the first seed's time holds the compilation.
            took = [statistics.median(of[name, seed]["seconds"] for seed in seeds) for name in (other, one)]
            comparisons.append(
                {"ipc": ipc, "of": one, "from": other, "difference": statistics.fmean(gaps), "std": _std(gaps)}
                | {"spread": _std(b), "seeds": len(seeds), "time_ratio": took[0] / took[1]}
            )
    return comparisons


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Distil, evaluate, write the file, print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data sets")
    parser.add_argument("--validation", type=int, default=500, help="validation images a class")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20, help="inner iterations")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--real", type=int, help="real images a class in a step; default: params.yaml's")
    parser.add_argument("--networks", type=int, default=2, help="networks trained on each set")
    parser.add_argument("--epochs", type=int, help="epochs of an evaluation; default: params.yaml's")
    parser.add_argument("--evaluations", type=int, default=5, help="networks the two evaluation loops are compared on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="do not compile the fast path (a trial of this program)")
    parser.add_argument("--output", type=Path, default=ACCURACY)
    args = parser.parse_args(arguments)

    info = datasets.info(args.dataset, {})
    splits = ("train", "validation")
    data, held = (datasets.load_split(args.dataset, s, args.data, args.validation, 0, {}) for s in splits)
    network = ("convnet", {"width": args.width})
    computes = {
        False: Compute.resolve("cpu", "float32", args.threads),
        True: Compute.resolve("cpu", "auto", args.threads, not args.eager),
    }
    options = {k: v for k, v in vars(args).items() if k not in ("data", "output")}
    machine = computes[True].describe()
    part = args.output.with_suffix(".part.json")  # what an interrupted run goes on from; a finished one leaves none
    rows, loops = _kept(part, options, machine)
    for ipc in args.ipc:
        first = ipc == args.ipc[0]  # at the others the two paths alone, to save time
        values = read_params(ROOT).evaluation("dream", ipc).model_dump()
        protocol = EvaluationParams(**values | {"repeats": args.networks, "epochs": args.epochs or values["epochs"]})
        for seed in range(args.seeds):
            for name, (fast, changes) in VARIANTS.items():
                if not first and name not in ("plain", "fast"):
                    continue
                if any((r["ipc"], r["seed"], r["variant"]) == (ipc, seed, name) for r in rows):
                    continue
                settings, compute = settings_of(ipc, args.iterations, args.real, changes), computes[fast]
                start = starting_set(data, info, settings, ipc, args.width, compute, seed)
                run = Distiller(start, data, info, settings, network, compute, seed)
                result, took = _timed(lambda run=run, name=name: run.run(label=name))
                scores = evaluate(
                    result.synthetic, held, info, protocol, network, computes[True],
                    seed=0, split="validation", label=name,
                )  # fmt: skip
                row = {"ipc": ipc, "variant": name, "seed": seed, "accuracy": scores.mean, "std": scores.std}
                rows.append(row | {"seconds": took, "accuracies": list(scores.accuracies)})
                if name == "plain" and seed == 0 and first:
                    several = protocol.model_copy(update={"repeats": args.evaluations})
                    loops.append({"ipc": ipc} | _loops(result.synthetic, held, info, several, network, computes[True]))
                write_json(part, _result(options, machine, rows, loops))
    result = _result(options, machine, rows, loops)
    write_json(args.output, result)
    part.unlink(missing_ok=True)
    _print(result)
    return result


def _result(options: dict[str, Any], machine: dict[str, Any], rows: list[Any], loops: list[Any]) -> dict[str, Any]:
    return {
        "machine": machine,
        "options": options,
        "rows": rows,
        "differences": differences(rows),
        "evaluation_loops": loops,
    }


def _kept(path: Path, options: dict[str, Any], machine: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What an interrupted run of the same options on such a machine has measured already."""
    measured = read_json(path) if path.is_file() else {}
    same = (measured.get("options"), measured.get("machine")) == (options, machine)
    return (measured["rows"], measured["evaluation_loops"]) if same else ([], [])


def _loops(
    synthetic: SyntheticSet,
    held: LabeledImages,
    info: DatasetInfo,
    protocol: EvaluationParams,
    network: tuple[str, dict[str, Any]],
    compute: Compute,
) -> dict[str, Any]:
    """One set by the plain evaluation and by the library's, on the same networks and draws."""
    plain, slow = _timed(lambda: evaluation(synthetic, held, info, protocol, network[1]["width"], 0))
    fast, quick = _timed(
        lambda: evaluate(synthetic, held, info, protocol, network, compute, seed=0, split="validation")
    )
    gaps = [a - b for a, b in zip(fast.accuracies, plain, strict=True)]
    return {
        "plain": plain,
        "library": list(fast.accuracies),
        "difference": statistics.fmean(gaps),
        "std": _std(gaps),
        "spread": _std(plain),
        "time_ratio": slow / quick,
    }


def _print(result: dict[str, Any]) -> None:
    print(f"{'ipc':>4}  {'variant':14}{'accuracy (%), by seed'}")
    for ipc, name in dict.fromkeys((row["ipc"], row["variant"]) for row in result["rows"]):
        of = [row for row in result["rows"] if (row["ipc"], row["variant"]) == (ipc, name)]
        shown = [f"{100 * row['accuracy']:.1f}" for row in of]
        print(f"{ipc:4}  {name:14}{'  '.join(shown)}")
    print("\ndifferences in points (paired), beside the spread of what they are taken from:")
    for d in result["differences"]:
        text = f"{100 * d['difference']:+.2f} ± {100 * d['std']:.2f}, seeds' spread {100 * d['spread']:.2f}"
        print(f"{d['ipc']:4}  {d['of']} from {d['from']}: {text}; {d['time_ratio']:.1f} times as fast")
    for d in result["evaluation_loops"]:
        text = f"{100 * d['difference']:+.2f} ± {100 * d['std']:.2f}, networks' spread {100 * d['spread']:.2f}"
        print(f"{d['ipc']:4}  evaluation, library from plain loop: {text}; {d['time_ratio']:.1f} times as fast")


if __name__ == "__main__":
    main()
