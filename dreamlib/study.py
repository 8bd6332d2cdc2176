"""A study: many runs under parameters of their own (studies.yaml), in few processes: ``python -m dreamlib.study``.

``python -m dreamlib.study STUDY clusters`` clusters for every seed, ``experts`` trains the trajectories, ``run METHOD``
distils and evaluates one method for every seed. Everything lands under results/STUDY/.
"""

import argparse
import os
import sys

from dreamlib.params import ParameterError, find_root
from dreamlib.project import Project, Setting
from dreamlib.run import prepare_kernel
from dreamlib.stage_clustering import run_clustering
from dreamlib.stage_distillation import run_distillation
from dreamlib.stage_evaluation import evaluated_networks, run_evaluation
from dreamlib.stage_experts import run_experts


def study_settings(project: Project, method: str) -> list[Setting]:
    """Every setting of one method, in the order of the parameters; raises ParameterError for one not listed."""
    p = project.params
    found = [Setting(method, ipc, seed) for ipc in p.ipc for seed in p.seeds]
    project.require(method, found[0].ipc, found[0].seed)
    return found


def run_method(project: Project, method: str) -> None:
    """Distil and evaluate one method for every seed; the first seed's set meets all of ``evaluation.networks``."""
    for setting in study_settings(project, method):
        run_distillation(project, setting)
        networks = evaluated_networks(project, project.params.evaluation(setting.ipc))
        run_evaluation(project, setting, networks if setting.seed == project.params.seeds[0] else networks[:1])


def run_clusters(project: Project) -> None:
    """The clustering stage for every ipc and seed of the study."""
    for ipc in project.params.ipc:
        for seed in project.params.seeds:
            run_clustering(project, ipc, seed)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status, with one clear line on standard error where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dreamlib.study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("part", choices=["clusters", "experts", "run"])
    parser.add_argument("method", nargs="?", help="for run")
    given = parser.parse_args(arguments)
    try:
        project = Project.open(study=given.study)
        if given.part == "run":
            if given.method is None:
                raise ParameterError(f"which method? one of {', '.join(project.params.methods)}")
            run_method(project, given.method)
        else:
            {"clusters": run_clusters, "experts": run_experts}[given.part](project)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # The allocator reads its settings when a process starts: begin again under those the launcher gives a notebook.
        prepare_kernel(find_root())
        os.execv(sys.executable, [sys.executable, "-m", "dreamlib.study", *sys.argv[1:]])
    sys.exit(main())
