"""Trajectories for trajectory matching, made once for all settings: ``python -m dreamlib.stage_experts``."""

from pathlib import Path

import torch

from dreamlib.experts import ExpertSettings, train_experts
from dreamlib.project import Project
from dreamlib.provenance import code_hash
from dreamlib.sampling import class_pool
from dreamlib.seeding import generator


def run_experts(project: Project, seed: int = 0) -> list[Path]:
    """Train what is missing under results/experts, or use it again; returns the files, one an expert.

    Raises ValueError for fewer than one expert or epoch.
    """
    how = project.params.experts()
    settings, data = ExpertSettings(**how.model_dump(exclude={"images"})), project.split("train")
    rows = [class_pool(data, c, how.images, generator(seed, "expert-images", c)) for c in range(data.num_classes)]
    return train_experts(
        project.results / "experts", data.subset(torch.cat(rows)), project.info, project.network, settings,
        project.compute, seed=seed, code_hash=code_hash("distillation", project.root),
    )  # fmt: skip


if __name__ == "__main__":
    for path in run_experts(Project.open()):
        print(path)
