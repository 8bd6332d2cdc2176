"""``python -m benchmarks.paper``: DREAM for as many of the paper's iterations as there is time for, and its accuracy.

``run`` does iterations of the paper budget for ``--minutes``, on from where it stopped before, on whatever machine: so
a run of the paper's length fits GPUs that are at hand for minutes at a time. ``evaluate`` trains networks on the
canvases kept so far, under the budget's protocol. What they find goes to paper.json and the README, the canvases to
paper-ipc<n>.safetensors; these two files are all that a run goes on from.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.accuracy import starting_set
from benchmarks.cost import POOL
from benchmarks.table import PAPER, ROOT, write
from dreamlib import datasets
from dreamlib.compute import Compute
from dreamlib.distill import Distiller
from dreamlib.evaluate import evaluate, test_split
from dreamlib.files import read_json, write_atomically, write_json
from dreamlib.params import Params, read_params
from dreamlib.progress import progress
from dreamlib.synthetic import SyntheticSet

METHOD, SEED = "dream", 0
SAVED_EVERY_S = 20.0


def paper_params() -> Params:
    """params.yaml under the budget that is the paper's."""
    return read_params(ROOT).model_copy(update={"budget": "paper"})


def canvases_file(ipc: int) -> Path:
    """The canvases of one run by iteration."""
    return ROOT / "benchmarks" / f"paper-ipc{ipc}.safetensors"


def recorded(ipc: int) -> dict[str, Any] | None:
    """What paper.json says of a run, if it was begun."""
    runs = read_json(PAPER)["runs"] if PAPER.is_file() else []
    return next((run for run in runs if run["ipc"] == ipc), None)


def recorded_canvases(ipc: int) -> dict[int, Tensor]:
    """The canvases kept of a run, by iteration."""
    return {int(iteration): canvases for iteration, canvases in sorted(load_file(canvases_file(ipc)).items())}


def begun(ipc: int, pool: int, compute: Compute) -> Distiller:
    """The run as far as it has come, at the beginning of an outer iteration.

    There the canvases are all that matters: the network is a new one, batches are chosen anew, and the budget's step
    has no momentum. Raises ValueError for a run that was begun with another pool.
    """
    params = paper_params()
    how = params.distillation(METHOD, ipc).model_copy(update={"pool": pool})
    assert how.image_update == "collapsed" and how.inner_iterations % how.interval == 0
    info, p = datasets.info(params.dataset, params.data.options), params.data
    data = datasets.load_split(params.dataset, "train", ROOT / p.directory, p.validation_per_class, 0, p.options)
    start, row = starting_set(data, info, how, ipc, 128, compute, SEED), recorded(ipc)
    run = Distiller(start, data, info, how, (params.network.name, params.network.options), compute, SEED)
    if row is None:
        return run
    if row["pool"] != pool:
        raise ValueError(
            f"the run at ipc {ipc} was begun with --pool {row['pool']}, not {pool}: go on with that, or delete its "
            f"entry in {PAPER.name}"
        )
    kept, seconds = recorded_canvases(ipc), {int(iteration): took for iteration, took in row["seconds"].items()}
    latest = max(kept)
    with torch.no_grad():
        run.synthetic.canvases.copy_(kept[latest])
    run.iteration = latest - latest % how.inner_iterations
    run.snapshots = {iteration: canvases for iteration, canvases in kept.items() if iteration in run._keep}
    run.seconds, run.clock = {"before": seconds[latest]}, {iteration: seconds[iteration] for iteration in run.snapshots}
    return run


def go_on(ipc: int, pool: int, minutes: float, compute: Compute) -> None:
    """Whole outer iterations for ``minutes``, one at least, or the rest of the run; recorded now and then."""
    run = begun(ipc, pool, compute)
    inner, saved = run.settings.inner_iterations, time.monotonic()
    end = saved + 60 * minutes
    with progress(run.total, f"{METHOD}-ipc{ipc}", initial=run.iteration) as bar:
        while run.iteration < run.total:
            run.step()
            bar.update()
            if run.iteration % inner:
                continue
            if time.monotonic() > end:
                break
            if time.monotonic() > saved + SAVED_EVERY_S:
                record(ipc, pool, run, compute)
                saved = time.monotonic()
    record(ipc, pool, run, compute)


def record(ipc: int, pool: int, run: Distiller, compute: Compute) -> None:
    """Write down how far a run is: its canvases at the iterations kept, and now, and its seconds until then."""
    state = run.state()
    now, row = state["iteration"], recorded(ipc) or {}
    kept = {i: canvases for i, canvases in state["snapshots"].items() if i} | {now: state["canvases"].cpu()}
    clock = {**state["clock"], now: sum(state["seconds"].values())}
    pieces = [*row.get("pieces", []), {"until": now, "machine": compute.describe()}]
    if len(pieces) > 1 and pieces[-2]["machine"] == pieces[-1]["machine"]:
        del pieces[-2]
    write_atomically(canvases_file(ipc), save({f"{i:07d}": canvases.contiguous() for i, canvases in kept.items()}))
    known = {"ipc": ipc, "pool": pool, "iterations": now, "total": run.total, "pieces": pieces}
    _replace(known | {"seconds": {str(i): clock[i] for i in kept}})


def _replace(row: dict[str, Any]) -> None:
    others = [r for r in read_json(PAPER)["runs"] if r["ipc"] != row["ipc"]] if PAPER.is_file() else []
    write_json(PAPER, {"runs": sorted([*others, row], key=lambda r: r["ipc"])})
    write()


def evaluated(ipc: int, compute: Compute) -> dict[str, Any]:
    """Last-epoch test accuracies of the canvases by iteration, under the budget's protocol."""
    params = paper_params()
    how, distilled = params.evaluation(ipc), params.distillation(METHOD, ipc)
    network, info = params.network, datasets.info(params.dataset, params.data.options)
    labels = torch.arange(info.num_classes).repeat_interleave(ipc)
    test, found = test_split(params.dataset, params.data, ROOT), {}
    for iteration, canvases in recorded_canvases(ipc).items():
        synthetic = SyntheticSet(canvases.clamp(0, 1), labels, info.num_classes, distilled.factor, distilled.decode)
        done = evaluate(
            synthetic, test, info, how, (network.name, network.options), compute,
            seed=SEED, split="test", label=f"at {iteration}",
        )  # fmt: skip
        found[str(iteration)] = list(done.accuracies)
    about = {"protocol": how.protocol, "epochs": how.epochs, "device": compute.describe()["device"]}
    return about | {"accuracies": found, "published": published(ipc, distilled.factor)}


def published(ipc: int, factor: int) -> list[float]:
    """The paper's accuracy on Fashion-MNIST and its spread in percent, from notebooks/published.csv."""
    rows = pd.read_csv(ROOT / "notebooks" / "published.csv")
    ours = rows[(rows.dataset == "fashion_mnist") & (rows.ipc == ipc) & (rows.method == f"DREAM (f={factor})")]
    return [float(ours["accuracy"].iloc[0]), float(ours["std"].iloc[0])]


def main(arguments: list[str] | None = None) -> None:
    """``run`` or ``evaluate``, and the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "evaluate"])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--pool", type=int, default=POOL, help="images of a class that are clustered; 0: all")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    given = parser.parse_args(arguments)
    compute = Compute.resolve("auto", "bfloat16", 0 if torch.cuda.is_available() else 2, True)
    if given.what == "run":
        go_on(given.ipc, given.pool, given.minutes, compute)
        return
    row = recorded(given.ipc)
    if row is None:
        parser.error(f"no run at ipc {given.ipc} was begun: `python -m benchmarks.paper run --ipc {given.ipc}` does")
    _replace(row | {"evaluation": evaluated(given.ipc, compute)})


if __name__ == "__main__":
    main()
