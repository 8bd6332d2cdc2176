"""``python -m benchmarks.paper``: DREAM for as many of the paper's iterations as there is time for, and its accuracy.

``run`` does iterations of the paper budget for ``--minutes``, on from where it stopped before: so a run of the paper's
length fits a GPU that is at hand for minutes at a time. ``evaluate`` trains networks on the canvases kept so far, under
the budget's protocol. What they find goes to paper.json and the README, the canvases to paper-ipc<n>.safetensors.
"""

import argparse
import contextlib
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
from dreamlib.checkpoint import Checkpoint
from dreamlib.compute import Compute
from dreamlib.distill import Distiller
from dreamlib.evaluate import evaluate, test_split
from dreamlib.files import read_json, write_atomically, write_json
from dreamlib.params import Params, read_params
from dreamlib.synthetic import SyntheticSet

METHOD, SEED = "dream", 0
SAVED_EVERY_S = 20.0
CHECKPOINTS = ROOT / ".dream" / "paper"


class TimeIsUp(Exception):
    """The checkpoint just saved is the last one there is time for."""


class Until(Checkpoint):
    """A checkpoint that ends the run once its time has come."""

    end = float("inf")

    def save(self, state: dict[str, Any]) -> None:
        """See ``Checkpoint.save``; raises TimeIsUp."""
        super().save(state)
        if time.monotonic() > self.end:
            raise TimeIsUp


def paper_params() -> Params:
    """params.yaml under the budget that is the paper's."""
    return read_params(ROOT).model_copy(update={"budget": "paper"})


def run(ipc: int, pool: int, minutes: float, compute: Compute) -> None:
    """Iterations for ``minutes``, or the rest of them, and a record of how far it is."""
    params = paper_params()
    changes = {"pool": pool, "checkpoint_every_s": SAVED_EVERY_S}
    how = params.distillation(METHOD, ipc).model_copy(update=changes)
    info = datasets.info(params.dataset, params.data.options)
    p = params.data
    data = datasets.load_split(params.dataset, "train", ROOT / p.directory, p.validation_per_class, 0, p.options)
    start = starting_set(data, info, how, ipc, 128, compute, SEED)
    one = Distiller(start, data, info, how, (params.network.name, params.network.options), compute, SEED)
    checkpoint = Until(CHECKPOINTS, f"ipc{ipc}-pool{pool}")
    checkpoint.end = time.monotonic() + 60 * minutes
    with contextlib.suppress(TimeIsUp):
        one.run(checkpoint, f"{METHOD}-ipc{ipc}")
    record(ipc, pool, one.state(), one.total, compute.describe())


def record(ipc: int, pool: int, state: dict[str, Any], total: int, machine: dict[str, Any]) -> None:
    """Write down what a run has come to: its canvases at the iterations kept, and now, and its seconds until then."""
    now, kept = state["iteration"], {i: x for i, x in state["snapshots"].items() if i}
    kept[now] = state["canvases"].clamp(0, 1).cpu()
    clock = {**state["clock"], now: sum(state["seconds"].values())}
    write_atomically(canvases_file(ipc), save({f"{i:07d}": x.contiguous() for i, x in kept.items()}))
    row = {"ipc": ipc, "pool": pool, "iterations": now, "total": total, "machine": machine}
    _replace(row | {"seconds": {str(i): clock[i] for i in kept}})


def _replace(row: dict[str, Any]) -> None:
    others = [r for r in read_json(PAPER)["runs"] if r["ipc"] != row["ipc"]] if PAPER.is_file() else []
    write_json(PAPER, {"runs": sorted([*others, row], key=lambda r: r["ipc"])})
    write()


def canvases_file(ipc: int) -> Path:
    """The canvases of one run by iteration."""
    return ROOT / "benchmarks" / f"paper-ipc{ipc}.safetensors"


def evaluated(ipc: int, canvases: dict[int, Tensor], compute: Compute) -> dict[str, Any]:
    """Last-epoch test accuracies of canvases by iteration, under the budget's protocol."""
    params = paper_params()
    how, drawn = params.evaluation(ipc), params.distillation(METHOD, ipc)
    info = datasets.info(params.dataset, params.data.options)
    test, found = test_split(params.dataset, params.data, ROOT), {}
    for iteration, x in canvases.items():
        labels = torch.arange(info.num_classes).repeat_interleave(ipc)
        synthetic = SyntheticSet(x, labels, info.num_classes, drawn.factor, drawn.decode)
        network = params.network.name, params.network.options
        done = evaluate(synthetic, test, info, how, network, compute, seed=SEED, split="test", label=f"at {iteration}")
        found[str(iteration)] = list(done.accuracies)
    return {
        "accuracies": found,
        "protocol": how.protocol,
        "epochs": how.epochs,
        "device": compute.describe()["device"],
        "published": published(ipc, drawn.factor),
    }


def published(ipc: int, factor: int) -> list[float]:
    """The paper's accuracy and its spread in percent, from notebooks/published.csv."""
    rows = pd.read_csv(ROOT / "notebooks" / "published.csv")
    mine = rows[(rows.dataset == "fashion_mnist") & (rows.ipc == ipc) & (rows.method == f"DREAM (f={factor})")]
    return [float(mine.accuracy.iloc[0]), float(mine["std"].iloc[0])]


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
        run(given.ipc, given.pool, given.minutes, compute)
        return
    kept = {int(i): x for i, x in sorted(load_file(canvases_file(given.ipc)).items())}
    (row,) = (r for r in read_json(PAPER)["runs"] if r["ipc"] == given.ipc)
    _replace(row | {"evaluation": evaluated(given.ipc, kept, compute)})


if __name__ == "__main__":
    main()
