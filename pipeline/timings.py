"""Timings of each run on this machine, stored in .dream/runs outside version control."""

from pathlib import Path
from typing import Any

from dreamlib._engine.compute import Compute, peak_memory_bytes
from dreamlib._engine.files import read_json, write_json

RUNS = Path(".dream") / "runs"  # outside version control: timings differ from run to run


def note_run(
    name: str, compute: Compute, seconds: dict[str, float], root: Path, dataset: str, **more: dict[Any, float]
) -> None:
    """Write a run's seconds, peak memory, device and versions to .dream/runs/<name>.json.

    The outputs do not contain them, so that they are byte-identical across runs.

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


def noted_seconds(name: str, root: Path) -> dict[str, float]:
    """Return the seconds that ``note_run`` wrote under a name."""
    return read_json(root / RUNS / f"{name}.json")["seconds"]
