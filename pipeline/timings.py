"""What each run took on this machine, kept beside its results and outside version control."""

from pathlib import Path
from typing import Any

from dreamlib._engine.compute import Compute, peak_memory_bytes
from dreamlib._engine.files import read_json, write_json
from pipeline.params import find_root

RUNS = Path(".dream") / "runs"  # outside version control: the times of a machine's runs never repeat


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
