"""A study: many runs under parameters of their own, in few processes: ``python -m pipeline.studies.run``.

``python -m pipeline.studies.run STUDY clusters`` clusters for every seed, ``experts`` trains the trajectories, ``run``
makes and evaluates the sets of the methods named after it, ``all`` does clusters and every method. Everything lands
under results/STUDY/.
"""

import argparse
import sys
from collections.abc import Sequence

from dreamlib.errors import ParameterError
from pipeline.launch_notebook import exit_status, restart_prepared
from pipeline.project import Project, Setting
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import run_distillation
from pipeline.stages.evaluation import evaluated_networks, run_evaluation
from pipeline.stages.experts import run_experts

KEPT_IPC = 10  # sets of more stored images a class are not kept by `all` in a study that compares methods


def study_settings(project: Project, method: str) -> list[Setting]:
    """Every setting of one method, in the order of the parameters; raises ParameterError for one not listed."""
    p = project.params
    found = [Setting(method, ipc, seed) for ipc in p.ipc for seed in p.seeds]
    project.require(method, found[0].ipc, found[0].seed)
    return found


def run_method(project: Project, method: str, every_seed: bool = False) -> None:
    """Distil and evaluate one method for every seed.

    The first seed's set meets all of ``evaluation.networks``; with ``every_seed`` the others' sets do so too.
    """
    for setting in study_settings(project, method):
        run_distillation(project, setting)
        networks = evaluated_networks(project, project.params.evaluation(method, setting.ipc))
        first = setting.seed == project.params.seeds[0]
        run_evaluation(project, setting, networks if first or every_seed else networks[:1])


def run_all(project: Project) -> None:
    """Clusters and every method, then only what a reader may want is kept; see ``drop_bulk``."""
    run_clusters(project)
    for method in project.params.methods:
        run_method(project, method, every_seed=True)
        drop_bulk(project, method)


def drop_bulk(project: Project, method: str) -> None:
    """Delete what has served: snapshots, and sets other than the first seed's at ``KEPT_IPC`` or below.

    Measurements stay, and the sets can be made again; what is committed stays small.
    """
    for setting in study_settings(project, method):
        project.file("snapshots", setting, ".safetensors").unlink()
        large = setting.ipc > KEPT_IPC and len(project.params.methods) > 1  # a study of one method is for its set
        if setting.seed != project.params.seeds[0] or large:
            project.file("sets", setting, ".safetensors").unlink()
    project.file("snapshots", setting, "").parent.rmdir()


def run_clusters(project: Project) -> None:
    """The clustering stage for every ipc and seed of the study."""
    for ipc in project.params.ipc:
        for seed in project.params.seeds:
            run_clustering(project, ipc, seed)


def run_part(project: Project, part: str, methods: Sequence[str] = ()) -> None:
    """One of the command's parts; ``methods`` is for 'run'. Raises ParameterError before any work for a wrong name."""
    if part != "run":
        return {"clusters": run_clusters, "experts": run_experts, "all": run_all}[part](project)
    if not methods:
        raise ParameterError(f"which method? one of {', '.join(project.params.methods)}")
    for method in methods:
        study_settings(project, method)
    for method in methods:
        run_method(project, method)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status, with one clear line on standard error where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.studies.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("part", choices=["clusters", "experts", "run", "all"])
    parser.add_argument("methods", nargs="*", metavar="method", help="for run: one or more")
    given = parser.parse_args(arguments)
    return exit_status(lambda: run_part(Project.open(study=given.study), given.part, given.methods))


if __name__ == "__main__":
    restart_prepared("pipeline.studies.run")
    sys.exit(main())
