"""Which data, parameters and code made a result: hashes for the record, and what this machine is."""

import hashlib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dreamlib._engine.compute import Compute, peak_memory_bytes
from dreamlib._engine.files import read_json, write_json
from pipeline.params import find_root

RUNS = Path(".dream") / "runs"  # times of this machine's runs: outside version control, since they never repeat


def stage_dependencies(stage: str, root: Path | None = None) -> list[str]:
    """The dependencies dvc.yaml declares for a stage (or for each of a matrix of stages); all code for one it lacks."""
    root = root or find_root()
    stages = YAML(typ="safe", pure=True).load(root / "dvc.yaml")["stages"]
    return list(stages[stage].get("deps", [])) if stage in stages else ["dreamlib"]


def code_hash(stage: str, root: Path | None = None) -> str:
    """A hash of the library files a stage depends on, as dvc.yaml lists them: part of a checkpoint's name."""
    root = root or find_root()
    whole = hashlib.sha256()
    for name in sorted(d for d in stage_dependencies(stage, root) if d.startswith("dreamlib")):
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


def note_run(
    name: str, compute: Compute, seconds: dict[str, float], root: Path, dataset: str, **more: dict[Any, float]
) -> None:
    """Keep what this run took on this machine (seconds, peak memory, device, versions) beside, not in, its outputs.

    ``more`` names further tables of measured numbers, such as the seconds at each snapshot. Wall-clock times never
    repeat; kept apart they let reports and metrics be the same bytes from run to run.
    """
    entry = {
        "dataset": dataset,
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
        **compute.describe(),
        **{kind: {str(k): round(v, 2) for k, v in table.items()} for kind, table in more.items()},
    }
    write_json(root / RUNS / f"{name}.json", entry)


def noted_seconds(name: str, root: Path | None = None) -> dict[str, float]:
    """The seconds ``note_run`` kept under a name."""
    return read_json((root or find_root()) / RUNS / f"{name}.json")["seconds"]
