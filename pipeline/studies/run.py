"""Run a study, many settings under its own parameters: ``python -m pipeline.studies.run STUDY PART``.

The parts: ``clusters`` runs the clustering for every ipc and seed, ``experts`` trains the trajectories, ``run METHOD
…`` distils and evaluates the named methods, ``all`` runs the clustering and every method. Results go to results/STUDY/.
"""

import argparse
import sys
from collections.abc import Sequence

from dreamlib.errors import ParameterError
from pipeline.failures import exit_status
from pipeline.launch_notebook import restart_prepared
from pipeline.project import Project, Setting
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import run_distillation
from pipeline.stages.evaluation import evaluated_networks, run_evaluation
from pipeline.stages.experts import run_experts

MAX_STORED_IPC = 10  # after `all`, a study comparing methods deletes sets with more stored images per class


def study_settings(project: Project, method: str) -> list[Setting]:
    """Return every setting of one method, in the order of the parameters; raise ParameterError for one not listed."""
    p = project.params
    project.require_listed(method, p.ipc[0], p.seeds[0])
    return [Setting(method, ipc, seed) for ipc in p.ipc for seed in p.seeds]


def run_method(project: Project, method: str, every_seed: bool = False) -> None:
    """Distil and evaluate one method for every seed.

    The first seed's set is evaluated on all of ``evaluation.networks``; with ``every_seed``, so are the other seeds'.
    """
    for setting in study_settings(project, method):
        run_distillation(project, setting)
        networks = evaluated_networks(project, project.params.evaluation(method, setting.ipc))
        first = setting.seed == project.params.seeds[0]
        run_evaluation(project, setting, networks if first or every_seed else networks[:1])


def run_all(project: Project) -> None:
    """Run the clustering and every method, and delete large files that are not needed; see ``drop_bulk``."""
    run_clusters(project)
    for method in project.params.methods:
        run_method(project, method, every_seed=True)
        drop_bulk(project, method)


def drop_bulk(project: Project, method: str) -> None:
    """Delete snapshots, and all sets but the first seed's up to ``MAX_STORED_IPC``, so that little is committed.

    Measurements stay, and the sets can be made again.
    """
    one_method = len(project.params.methods) == 1  # such a study is made for its set
    for setting in study_settings(project, method):
        project.file("snapshots", setting, ".safetensors").unlink()
        large = setting.ipc > MAX_STORED_IPC and not one_method
        if setting.seed != project.params.seeds[0] or large:
            project.file("sets", setting, ".safetensors").unlink()
    project.file("snapshots", setting, "").parent.rmdir()


def run_clusters(project: Project) -> None:
    """Run the clustering stage for every ipc and seed of the study."""
    for ipc in project.params.ipc:
        for seed in project.params.seeds:
            run_clustering(project, ipc, seed)


def run_part(project: Project, part: str, methods: Sequence[str] = ()) -> None:
    """Run one of the command's parts, 'run' for ``methods``; raise ParameterError for unknown names before any work."""
    if part != "run":
        return {"clusters": run_clusters, "experts": run_experts, "all": run_all}[part](project)
    if not methods:
        raise ParameterError(f"part 'run' needs at least one method: {', '.join(project.params.methods)}")
    for method in methods:
        study_settings(project, method)
    for method in methods:
        run_method(project, method)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status, after one line on standard error if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.studies.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("part", choices=["clusters", "experts", "run", "all"])
    parser.add_argument("methods", nargs="*", metavar="method", help="for run: one or more")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run_part(Project.open(study=options.study), options.part, options.methods))


if __name__ == "__main__":
    restart_prepared("pipeline.studies.run")
    sys.exit(main())
