"""``python -m benchmarks.reach``: how good a set is after how long, counted from nothing; to reach.json.

Each method of the study ``reach`` (studies/params.yaml) runs in a process of its own that finds nothing compiled: it
reads the data, clusters, and distils. The canvases kept on the way then train networks, whose accuracy on the test
images says what was reached when. Their training is not counted; nothing is chosen by it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.__main__ import cpu_name
from benchmarks.accuracy import from_clusters
from benchmarks.paper import as_set, published
from benchmarks.table import REACH, ROOT, if_measured, note_of
from dreamlib._engine.files import write_atomically, write_json
from dreamlib.data.types import LabeledImages
from dreamlib.distill import Distiller
from dreamlib.evaluation import evaluate, test_split
from dreamlib.settings import DistillParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.failures import exit_status
from pipeline.launch_notebook import restart_prepared
from pipeline.project import Project

STUDY = "reach"


def opened() -> Project:
    """The project under the study's parameters.

    Raises ValueError where they name more than one ipc or seed.
    """
    project = Project.open(ROOT, STUDY)
    for name in ("ipc", "seeds"):
        if len(values := getattr(project.params, name)) != 1:
            raise ValueError(
                f"the study {STUDY} of studies/params.yaml has one run a method: list one of {name}, not {values}"
            )
    return project


def machine(project: Project) -> dict[str, Any]:
    """What times and bits depend on."""
    return project.compute.describe() | {"cpu": cpu_name()}


def clustered_start(project: Project, distillation: DistillParams, ipc: int, seed: int) -> SyntheticSet:
    """The canvases that the clustering and distillation stages would begin with.

    Raises ValueError for a method that begins otherwise, or whose sets are more than canvases.
    """
    if distillation.init != "kmeans":
        raise ValueError(f"the study {STUDY} measures runs from clusters: init must be kmeans, not {distillation.init}")
    if distillation.decode == "dct":
        raise ValueError(f"the study {STUDY} keeps canvases without a mask of frequencies: decode must not be dct")
    data, its = project.split("train").to(project.compute.device), project.params.clustering()
    return from_clusters(data, distillation, ipc, seed, project.embedder(seed), its.pool, its.max_iterations, its.pick)


def distil(method: str, since: float, output: Path) -> None:
    """The method's run; its canvases along the way, with the seconds from ``since`` (Unix time) to each of them."""
    project = opened()
    (ipc,), (seed,) = project.params.ipc, project.params.seeds
    distillation = project.params.distillation(method, ipc)
    start = clustered_start(project, distillation, ipc, seed)
    run = Distiller(start, project.split("train"), project.info, distillation, project.network, project.compute, seed)
    before = time.time() - since
    result = run.run(label=f"{STUDY}: {method}")
    seconds = {i: before + took for i, took in result.clock.items() if i}
    note = {"before": before, "total": run.total, "seconds": seconds, "machine": machine(project)}
    note |= {"settings": settings(project, method)}
    tensors = {str(i): canvases.contiguous() for i, canvases in result.snapshots.items() if i}
    write_atomically(output, save(tensors, {"run": json.dumps(note)}))


def settings(project: Project, method: str) -> str:
    """A hash of all parameters that shape a method's run."""
    p = project.params
    distillation, compute = p.distillation(method, p.ipc[0]), p.compute.model_dump()
    return digest(
        p.dataset,
        p.ipc,
        p.seeds,
        p.data.model_dump(),
        p.validation_per_class,
        p.network,
        p.clustering(method),
        distillation,
        compute,
    )


def from_nothing(method: str, output: Path) -> None:
    """``distil`` in a process of its own, with an empty folder for what it compiles.

    Raises RuntimeError when that process fails, which has said why.
    """
    with tempfile.TemporaryDirectory() as compiled:
        command = [sys.executable, "-m", "benchmarks.reach", "--distil", method, str(output), str(time.time())]
        status = subprocess.run(command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiled}, cwd=ROOT).returncode
    if status:
        raise RuntimeError(f"the run of {method} ended with status {status}")


def kept(method: str) -> Path:
    """Where a run's canvases wait for their evaluation."""
    return ROOT / ".dream" / STUDY / f"{method}.safetensors"


def measure() -> None:
    """Every method's run and evaluation, of this kind of machine, into reach.json; an interrupted one goes on."""
    project = opened()
    (ipc,), here = project.params.ipc, machine(project)
    protocol = project.params.evaluation(project.params.methods[0], ipc)
    test = test_split(project.params.dataset, ROOT / project.params.data.directory, project.params.data.options)
    kind = f"{project.compute.device.type}, {project.compute.precision}"
    result: dict[str, Any] = {
        "machine": here,
        "ipc": ipc,
        "epochs": protocol.epochs,
        "protocol": protocol.protocol,
        "published": published(ipc, project.params),
        "runs": {},
    }
    for method in project.params.methods:
        path, expected = kept(method), {"settings": settings(project, method), "machine": here}
        if {key: (note_of(path) or {}).get(key) for key in expected} != expected:
            path.parent.mkdir(parents=True, exist_ok=True)
            from_nothing(method, path)
        note, points = note_of(path), {}
        for iteration, canvases in sorted(load_file(path).items(), key=lambda item: int(item[0])):
            accuracies = evaluated(project, method, canvases, test, iteration)
            points[iteration] = {"seconds": note["seconds"][iteration], "accuracies": accuracies}
        distillation = project.params.distillation(method, ipc)
        about = {"factor": distillation.factor, "objective": distillation.objective, "total": note["total"]}
        result["runs"][method] = about | {"before_s": note["before"], "points": points}
    write_json(REACH, (if_measured(REACH) or {}) | {kind: result})
    for method in project.params.methods:
        for path in kept(method).parent.glob(f"{method}*"):
            path.unlink()


def evaluated(project: Project, method: str, canvases: Tensor, test: LabeledImages, iteration: str) -> list[float]:
    """Last-epoch test accuracies of a run's canvases at an iteration; kept beside them until all are there."""
    (ipc,), (seed,) = project.params.ipc, project.params.seeds
    protocol, distillation = project.params.evaluation(method, ipc), project.params.distillation(method, ipc)
    of = digest(canvases.tolist(), protocol, project.network)
    done = kept(method).with_suffix(f".{iteration}.json")
    known = if_measured(done) or {}
    if known.get("of") != of:
        result = evaluate(
            as_set(canvases, ipc, distillation), test, project.info, protocol, project.network, project.compute,
            seed=seed, split="test", label=f"{method} at {iteration}",
        )  # fmt: skip
        known = {"of": of, "accuracies": list(result.accuracies)}
        write_json(done, known)
    return known["accuracies"]


def main(arguments: list[str] | None = None) -> int:
    """Measure, or be the process that is measured; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reach", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--distil", nargs=3, metavar=("METHOD", "FILE", "SINCE"), help="(what is measured)")
    args = parser.parse_args(arguments)
    if args.distil:
        method, output, since = args.distil
        return exit_status(partial(distil, method, float(since), Path(output)))
    return exit_status(measure)


if __name__ == "__main__":
    restart_prepared("benchmarks.reach")
    sys.exit(main())
