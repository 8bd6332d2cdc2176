"""Trajectories for trajectory matching, made once for all settings: ``python -m dreamlib.stage_experts``."""

from pathlib import Path

from dreamlib.experts import ExpertSettings, train_experts
from dreamlib.project import Project
from dreamlib.provenance import code_hash


def run_experts(project: Project, seed: int = 0) -> list[Path]:
    """Train what is missing under results/experts, or use it again; returns the files, one an expert.

    Raises ValueError for fewer than one expert or epoch.
    """
    settings = ExpertSettings(**project.params.experts().model_dump())
    return train_experts(
        project.root / "results" / "experts", project.split("train"), project.info, project.network, settings,
        project.compute, seed=seed, code_hash=code_hash("distillation", project.root),
    )  # fmt: skip


if __name__ == "__main__":
    for path in run_experts(Project.open()):
        print(path)
