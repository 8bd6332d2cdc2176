"""A study's sets on networks they have never met: ``python -m dreamlib.stage_transfer STUDY BUDGET METHOD …``."""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from dreamlib.evaluate import evaluate, test_split
from dreamlib.files import write_atomically
from dreamlib.params import find_root
from dreamlib.project import Project, Setting
from dreamlib.run import prepare_kernel
from dreamlib.stage_distillation import read_set


def transfer_path(project: Project) -> Path:
    """Where the accuracies lie."""
    return project.results / "transfer.csv"


def run_transfer(project: Project, budget: str, methods: list[str]) -> pd.DataFrame:
    """The first seed's sets of ``methods`` on every network of ``budgets.<budget>.evaluation``, under its protocol.

    Writes transfer.csv: method, network, accuracy, a row for each trained network. Raises ParameterError for a method
    the study does not list and FileNotFoundError for a set that has not been made.
    """
    p, rows = project.params, []
    ipc, seed = p.ipc[0], p.seeds[0]
    how = p.model_copy(update={"budget": budget}).evaluation(ipc)
    for method in methods:
        project.require(method, ipc, seed)
    sets = {method: read_set(project, Setting(method, ipc, seed)) for method in methods}
    test = test_split(p.dataset, p.data, project.root)
    for network in how.networks:
        for method, synthetic in sets.items():
            done = evaluate(
                synthetic, test, project.info, how, (network.name, network.options), project.compute,
                seed=seed, split="test", label=f"{method}, {network.label}",
            )  # fmt: skip
            rows += [(method, network.label, accuracy) for accuracy in done.accuracies]
    table = pd.DataFrame(rows, columns=["method", "network", "accuracy"])
    write_atomically(transfer_path(project), table.to_csv(index=False).encode())
    return table


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status, with one clear line on standard error where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dreamlib.stage_transfer")
    parser.add_argument("study")
    parser.add_argument("budget", help="whose evaluation lists the networks")
    parser.add_argument("methods", nargs="+")
    given = parser.parse_args(arguments)
    try:
        run_transfer(Project.open(study=given.study), given.budget, given.methods)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # As in dreamlib.study: the allocator reads its settings when a process starts.
        prepare_kernel(find_root())
        os.execv(sys.executable, [sys.executable, "-m", "dreamlib.stage_transfer", *sys.argv[1:]])
    sys.exit(main())
