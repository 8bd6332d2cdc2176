"""Timings of a run, and its comparison with the committed results: ``python -m pipeline.report.record ACTION``."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from dreamlib._engine.files import read_json, write_json
from pipeline.params import find_root, read_params
from pipeline.project import RUNS, Project
from pipeline.report.results import read_record
from pipeline.report.tables import markdown

RECORD = Path("results") / "record.json"
RESULTS = {"clustering": "clusters", "distillation": "*/distillation", "evaluation": "*/evaluation"}  # of a study
COMMANDS = {"make repro": "", "make methods": "methods", "make claims": "claims", "make best": "best"}  # → study
TESTS = Path("results") / "tests.json"  # timings of `make test`
TEST_REPORT = Path(".dream") / "tests.xml"  # pytest's own report of the last `make test` (--junitxml)


def collect(root: Path, study: str = "", joining: Sequence[str] = ()) -> dict[str, Any]:
    """Return the timings of this machine's last run of every stage instance of the default pipeline or a study.

    A study's record includes the studies whose names begin with its name, and those in ``joining``: that of claims has
    the entries of claims_curves under "claims_curves/<stage instance>".
    """
    entries = {path.stem: read_json(path) for path in sorted((root / RUNS / study).glob("*.json"))}
    for pattern in [*([f"{study}_*"] if study else []), *joining]:
        for path in sorted((root / RUNS).glob(f"{pattern}/*.json")):
            entries[f"{path.parent.name}/{path.stem}"] = read_json(path)
    return entries


def cost_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return seconds, peak memory and device of every recorded stage instance."""
    rows = [
        (
            name,
            sum(entry["seconds"].values()),
            ", ".join(f"{k} {v:.0f} s" for k, v in entry["seconds"].items()),
            entry["peak_memory_bytes"] / 2**20,
            entry["device"],
        )
        for name, entry in record.items()
    ]
    return pd.DataFrame(rows, columns=["stage", "seconds", "of which", "peak memory (MiB)", "device"]).round(0)


def record_table(root: Path, dataset: str) -> pd.DataFrame:
    """Return the entries of the committed record for a data set as a table; empty if there are none."""
    record = read_record(root / RECORD.parent)
    return cost_table({name: entry for name, entry in record.items() if entry["dataset"] == dataset})


def times_table(root: Path, commands: Sequence[str] | None = None) -> str:
    """Return the time each command took on the machines of the committed records, as a Markdown table.

    commands: those to list, all by default; a command without a record has no row
    """
    rows = []
    for command, study in COMMANDS.items():
        entries = list(read_record(root / RECORD.parent / study).values())
        if entries:
            seconds = sum(sum(entry["seconds"].values()) for entry in entries)
            memory = max(entry["peak_memory_bytes"] for entry in entries) / 2**20
            machines = "; ".join(sorted({_machine(entry) for entry in entries}))
            rows.append((f"`{command}`", f"{seconds / 60:.0f}", f"{len(entries)} stages", f"{memory:,.0f}", machines))
    if (root / TESTS).is_file():
        tests = read_json(root / TESTS)
        count = f"{tests['tests']:,} tests"
        rows.append(("`make test`", f"{tests['seconds'] / 60:.0f}", count, "–", _machine(tests)))
    shown = [row for row in rows if commands is None or row[0].strip("`") in commands]
    return markdown(["command", "minutes", "of", "largest memory (MiB)", "on"], shown)


def _machine(entry: dict[str, Any]) -> str:
    return f"{entry['device']}, {entry['threads']} threads, {entry['precision']}"


def write_tests_record(root: Path) -> None:
    """Write results/tests.json from pytest's report of the last `make test`, if there is one."""
    if not (root / TEST_REPORT).is_file():
        return
    suites = list(ElementTree.parse(root / TEST_REPORT).getroot().iter("testsuite"))
    write_json(
        root / TESTS,
        {
            "seconds": round(sum(float(suite.attrib["time"]) for suite in suites)),
            "tests": sum(int(suite.attrib["tests"]) for suite in suites),
            **Project(root, read_params(root)).compute.describe(),
        },
    )


def committed(root: Path, path: str) -> bytes | None:
    """Return a file's content in the last commit, or None."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=root, capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else None


def compare(root: Path) -> tuple[pd.DataFrame, bool]:
    """Compare the set and accuracy of every setting of params.yaml with the last commit's, and whether all agree.

    An accuracy agrees if it differs from the committed mean by at most three combined standard deviations, or two
    percentage points if that is more: two networks estimate a spread poorly, and other processors or number formats
    give different networks.
    """
    rows = []
    for setting in Project(root, read_params(root)).settings:
        path = root / "results" / "evaluation" / f"{setting.name}.json"
        old, new = committed(root, path.relative_to(root).as_posix()), read_json(path)
        if old is None:
            rows.append((path.stem, "not committed", new["accuracy"], None, "nothing to compare"))
            continue
        recorded = json.loads(old)
        set_path = f"results/sets/{path.stem}.safetensors"
        same = committed(root, set_path) == (root / set_path).read_bytes()
        allowed = max(0.02, 3 * (recorded["std"] ** 2 + new["std"] ** 2) ** 0.5)
        within = abs(recorded["accuracy"] - new["accuracy"]) <= allowed
        inside = "within the spread" if recorded["std"] or new["std"] else f"within {100 * allowed:.1f} points"
        verdict = inside if within else f"OUTSIDE ± {100 * allowed:.1f} points"
        rows.append((path.stem, "same bits" if same else "other bits", new["accuracy"], recorded["accuracy"], verdict))
    table = pd.DataFrame(rows, columns=["setting", "distilled set", "accuracy", "recorded", "verdict"])
    return table, not table["verdict"].str.startswith("OUTSIDE").any()


def _has_result(root: Path, name: str) -> bool:
    """Return whether the output of a study's stage instance, "study/stage-setting", is among the results."""
    study, _, instance = name.partition("/")
    stage, _, setting = instance.partition("-")
    return stage in RESULTS and any((root / "results" / study).glob(f"{RESULTS[stage]}/{setting}.json"))


def _write(root: Path, studies: Sequence[str]) -> int:
    study, *joining = studies or [""]
    entries = collect(root, study, joining)
    if not entries:
        print(f"error: no run is recorded in {RUNS / study}; run the stages first", file=sys.stderr)
        return 1
    path = RECORD.parent / study / RECORD.name
    # Keep the entries of studies not run on this machine, and those of seeds not run here whose results exist.
    here = {name.partition("/")[0] for name in entries if "/" in name}
    before = read_record((root / path).parent) if here else {}
    for name, entry in before.items():
        if name not in entries and "/" in name and (name.partition("/")[0] not in here or _has_result(root, name)):
            entries[name] = entry
    write_json(root / path, entries)
    if not study:
        write_tests_record(root)
    print(f"{path}: {len(entries)} stages")
    return 0


def _compare(root: Path) -> int:
    table, all_within = compare(root)
    shown = table.assign(**{c: (100 * table[c].astype(float)).round(1) for c in ("accuracy", "recorded")})
    print("\nThis run compared with the committed record (accuracies in percent):\n")
    print(shown.to_string(index=False))
    costs = cost_table(collect(root))
    if len(costs):
        print(f"\nStages took {costs['seconds'].sum():.0f} s; peak memory {costs['peak memory (MiB)'].max():.0f} MiB.")
    print("Read the report: reports/04_figures.ipynb, or run `make report` and open reports/html/index.html")
    return 0 if all_within else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 if an accuracy is outside the recorded spread."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.record", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("action", choices=["compare", "write"])
    parser.add_argument(
        "--study",
        nargs="+",
        default=[],
        metavar="STUDY",
        help="write: the record of this study instead of the default pipeline's; further studies are added to it",
    )
    args = parser.parse_args(arguments)
    return _write(find_root(), args.study) if args.action == "write" else _compare(find_root())


if __name__ == "__main__":
    sys.exit(main())
