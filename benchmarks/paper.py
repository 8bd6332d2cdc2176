"""``python -m benchmarks.paper``: DREAM for as many of the paper's iterations as there is time for, and its accuracy.

``run`` does iterations of the paper budget for ``--minutes``, on from where it stopped before, on whatever machine: so
a run of the paper's length fits GPUs that are at hand for minutes at a time. All that it goes on from is
paper-ipc<n>.safetensors: the canvases at some iterations with a note of how they came about. ``evaluate`` trains
networks on them under the budget's protocol, for paper.json. docs/speed.md shows both.
"""

import argparse
import json
import math
import sys
import time
from functools import partial

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.accuracy import starting_set
from benchmarks.cost import POOL
from benchmarks.table import PAPER, ROOT, canvases_file, paper_evaluations, paper_run
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import write_atomically, write_json
from dreamlib._engine.progress import progress
from dreamlib.distill import Distiller, snapshot_iterations
from dreamlib.evaluation import evaluate, test_split
from dreamlib.settings import DistillParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.failures import exit_status
from pipeline.params import Params, read_params
from pipeline.project import Project

METHOD, SEED = "dream", 0
SAVED_EVERY_S = 20.0


def paper_params() -> Params:
    """params.yaml under the budget that is the paper's."""
    return read_params(ROOT).model_copy(update={"budget": "paper"})


def settings(ipc: int, pool: int) -> DistillParams:
    """The budget's, with ``pool`` images of a class clustered on the way.

    Raises ValueError where canvases are not all that a run at the beginning of an outer iteration goes on from.
    """
    distillation = paper_params().distillation(METHOD, ipc)
    distillation = DistillParams.model_validate(distillation.model_dump() | {"pool": pool})
    needed = {"image_update": "once_equivalent", "image_optimizer": "sgd"}  # a step without memory
    for name, value in needed.items():
        if getattr(distillation, name) != value:
            raise ValueError(
                f"a run in pieces needs {name}: {value} in the paper budget, not {getattr(distillation, name)}"
            )
    if distillation.inner_iterations % distillation.interval:
        raise ValueError(
            f"a run in pieces needs an interval that divides the {distillation.inner_iterations} inner iterations of "
            f"the paper budget, not {distillation.interval}"
        )
    return distillation


def shaped_by(distillation: DistillParams) -> str:
    """A hash of all parameters that shape a run."""
    params = paper_params()
    shape = distillation.model_dump(exclude={"checkpoint_every_s", "parallel_classes", "snapshots"})
    data = params.data.model_dump(exclude={"directory"}), params.validation_per_class
    return digest(params.dataset, *data, params.network, shape)


def recorded_canvases(ipc: int) -> dict[int, Tensor]:
    """The canvases kept of a run, by iteration."""
    return {int(iteration): canvases for iteration, canvases in sorted(load_file(canvases_file(ipc)).items())}


def begun(ipc: int, distillation: DistillParams, compute: Compute) -> Distiller:
    """The run as far as it has come, at the beginning of an outer iteration.

    There the canvases are all that matters: the network is a new one, batches are chosen anew, a step has no memory. A
    record from within an outer iteration goes on at that one's beginning.

    Raises ValueError for a run that was begun with other parameters.
    """
    project, row = Project(ROOT, paper_params()), paper_run(ipc)
    if row and row["settings"] != shaped_by(distillation):
        raise ValueError(
            f"the run at ipc {ipc} was begun with --pool {row['pool']} and other parameters than now, --pool "
            f"{distillation.pool}: go on with those, or delete {canvases_file(ipc).name} to begin anew"
        )
    data, info, network = project.split("train"), project.info, project.network
    if row is None:
        start = starting_set(data, info, distillation.model_copy(update={"pool": 0}), ipc, 128, compute, SEED)
        return Distiller(start, data, info, distillation, network, compute, SEED)
    kept, seconds = recorded_canvases(ipc), {int(iteration): took for iteration, took in row["seconds"].items()}
    latest = max(kept)
    run = Distiller(as_set(kept[latest], ipc, distillation), data, info, distillation, network, compute, SEED)
    run.iteration = latest - latest % distillation.inner_iterations
    at = snapshot_iterations(run.total, distillation.snapshots)
    run.snapshots = {iteration: canvases for iteration, canvases in kept.items() if iteration in at}
    run.seconds, run.clock = {"before": seconds[latest]}, {iteration: seconds[iteration] for iteration in run.snapshots}
    return run


def as_set(canvases: Tensor, ipc: int, distillation: DistillParams) -> SyntheticSet:
    """Canvases as a set, pixels in [0, 1]."""
    classes = len(canvases) // ipc
    labels = torch.arange(classes).repeat_interleave(ipc)
    return SyntheticSet(canvases.clamp(0, 1), labels, classes, distillation.factor, distillation.decode)


def go_on(ipc: int, pool: int, minutes: float, compute: Compute) -> None:
    """Whole outer iterations for ``minutes``, one at least, or the rest of the run; recorded now and then."""
    row = paper_run(ipc)
    if row and row["iterations"] >= row["total"]:
        print(f"all {row['total']:,} iterations at ipc {ipc} are done: evaluate them")
        return
    distillation = settings(ipc, pool)
    run, shape, saved = begun(ipc, distillation, compute), shaped_by(distillation), time.monotonic()
    end = saved + 60 * minutes
    with progress(run.total, f"{METHOD}-ipc{ipc}", initial=run.iteration) as bar:
        while run.iteration < run.total:
            run.step()
            bar.update()
            if run.iteration % distillation.inner_iterations:
                continue
            if time.monotonic() > end:
                break
            if time.monotonic() > saved + SAVED_EVERY_S:
                record(ipc, run, shape, compute)
                saved = time.monotonic()
    record(ipc, run, shape, compute)


def record(ipc: int, run: Distiller, shape: str, compute: Compute) -> None:
    """Write down how far a run of that ``shape`` is: canvases and seconds at the iterations kept, and now."""
    state, before = run.state(), paper_run(ipc) or {}
    now = state["iteration"]
    kept = {i: canvases for i, canvases in state["snapshots"].items() if i} | {now: state["canvases"].cpu()}
    clock = {**state["clock"], now: sum(state["seconds"].values())}
    pieces = [*before.get("pieces", []), {"until": now, "machine": compute.describe()}]
    if len(pieces) > 1 and pieces[-2]["machine"] == pieces[-1]["machine"]:
        del pieces[-2]
    row = {
        "ipc": ipc,
        "pool": run.settings.pool,
        "iterations": now,
        "total": run.total,
        "settings": shape,
        "seconds": {str(i): clock[i] for i in kept},
        "pieces": pieces,
    }
    tensors = {f"{i:07d}": canvases.contiguous() for i, canvases in kept.items()}
    write_atomically(canvases_file(ipc), save(tensors, {"run": json.dumps(row)}))


def evaluate_run(ipc: int, compute: Compute) -> None:
    """Last-epoch test accuracies of the canvases by iteration, under the budget's protocol; those known are kept."""
    params = paper_params()
    project, protocol = Project(ROOT, params), params.evaluation(METHOD, ipc)
    distillation = params.distillation(METHOD, ipc)
    about = {"protocol": protocol.protocol, "epochs": protocol.epochs, "device": compute.describe()["device"]}
    about |= {"settings": digest(protocol.model_dump(exclude={"parallel_classes"}), params.network)}
    about |= {"published": published(ipc, params)}
    before = paper_evaluations().get(str(ipc), {})
    known = before.pop("points", {})
    if before != about:
        known = {}
    test, points = test_split(params.dataset, ROOT / params.data.directory, params.data.options), {}
    for iteration, canvases in recorded_canvases(ipc).items():
        of, point = digest(canvases.tolist()), known.get(str(iteration), {})
        if point.get("canvases") != of:
            done = evaluate(
                as_set(canvases, ipc, distillation), test, project.info, protocol, project.network, compute,
                seed=SEED, split="test", label=f"at {iteration}",
            )  # fmt: skip
            point = {"canvases": of, "accuracies": list(done.accuracies)}
        points[str(iteration)] = point
    write_json(PAPER, paper_evaluations() | {str(ipc): about | {"points": points}})


def published(ipc: int, params: Params) -> list[float] | None:
    """DREAM's accuracy on the data set and its spread in percent, from notebooks/published.csv, if it is there."""
    rows = pd.read_csv(ROOT / "notebooks" / "published.csv")
    method = f"DREAM (f={params.distillation(METHOD, ipc).factor})"
    rows = rows[(rows.dataset == params.dataset) & (rows.ipc == ipc) & (rows.method == method)]
    return [float(rows["accuracy"].iloc[0]), float(rows["std"].iloc[0])] if len(rows) else None


def compute_at_hand() -> Compute:
    """A GPU, or two CPU cores; half precision where there is some, compiled."""
    return Compute.resolve("auto", "auto", 0 if torch.cuda.is_available() else 2, True)


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text} is not a time: give minutes above 0, or leave it out for all the rest"
        )
    return value


def main(arguments: list[str] | None = None) -> int:
    """Do ``run`` or ``evaluate``; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "evaluate"])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--pool", type=int, default=POOL, help="images of a class that are clustered; 0: all")
    parser.add_argument("--minutes", type=_minutes, default=math.inf)
    args = parser.parse_args(arguments)
    if args.what == "evaluate" and not canvases_file(args.ipc).is_file():
        parser.error(f"no run at ipc {args.ipc} was begun: `python -m benchmarks.paper run --ipc {args.ipc}` does")
    compute = compute_at_hand()
    if args.what == "run":
        return exit_status(partial(go_on, args.ipc, args.pool, args.minutes, compute))
    return exit_status(partial(evaluate_run, args.ipc, compute))


if __name__ == "__main__":
    sys.exit(main())
