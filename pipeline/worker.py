"""One of ``compute.workers`` processes of a stage: ``python -m pipeline.worker STAGE --method M --ipc N --seed S``.

Started by torchrun from ``dreamlib._engine.ranks.run_workers``; the stage's own function does the work and process 0
writes its files.
"""

import argparse
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from dreamlib._engine import ranks
from dreamlib.settings import NetworkParams
from pipeline.params import read_params
from pipeline.project import Project, Setting
from pipeline.stages.distillation import run_distillation
from pipeline.stages.evaluation import run_evaluation


def end_with_starter() -> None:
    """End this process as soon as the one that started the workers ends, detected by the closing of standard input."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    if ranks.FAILURE_FILE in os.environ:  # else torchrun was started by hand, with another standard input
        threading.Thread(target=wait, daemon=True).start()


def work(project: Project, setting: Setting, stage: str, networks: list[dict[str, Any]] | None) -> None:
    """Run one stage as a member of the group."""
    if stage == "distillation":
        run_distillation(project, setting)
    else:
        run_evaluation(project, setting, [NetworkParams.model_validate(n) for n in networks] if networks else None)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status, and store an error message for the starting process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["distillation", "evaluation"])
    parser.add_argument("--root", type=Path, help="the project; default: the one around the current directory")
    parser.add_argument("--method", required=True)
    parser.add_argument("--ipc", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--study")
    parser.add_argument("--networks", type=json.loads, help="for evaluation: a JSON list of {name, options}")
    args = parser.parse_args(arguments)
    setting = Setting(args.method, args.ipc, args.seed)
    end_with_starter()
    try:
        with ranks.joined(read_params(args.root, args.study).compute.device):
            work(Project.open(args.root, args.study), setting, args.stage, args.networks)
    except Exception as error:
        # Ranks waiting for this one fail next; reporting now keeps the original cause.
        ranks.report_failure(f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
