"""Hashes of the code behind a stage, and what a run took on this machine."""

import hashlib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dreamlib._engine.compute import Compute, peak_memory_bytes
from dreamlib._engine.files import read_json, write_json
from pipeline.params import find_root

RUNS = Path(".dream") / "runs"  # outside version control: the times of a machine's runs never repeat


def stage_dependencies(stage: str, root: Path | None = None) -> list[str]:
    """Return the dependencies that dvc.yaml declares for a stage; the whole library for a stage it does not have."""
    root = root or find_root()
    stages = YAML(typ="safe", pure=True).load(root / "dvc.yaml")["stages"]
    return list(stages[stage].get("deps", [])) if stage in stages else ["dreamlib"]


def code_hash(stage: str, root: Path | None = None) -> str:
    """Return a hash of the library files that a stage depends on; it is part of a checkpoint's name."""
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
    """Write what a run took (seconds, peak memory, device, versions) to .dream/runs/<name>.json.

    Kept apart from the outputs, which then are the same bytes from run to run.

    seconds: seconds of each part of the run
    more: further tables of measured numbers, such as the seconds at each snapshot
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
    """Return the seconds that ``note_run`` wrote under a name."""
    return read_json((root or find_root()) / RUNS / f"{name}.json")["seconds"]
