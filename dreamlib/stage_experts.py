"""Trajectories for trajectory matching, made once for all settings: ``python -m dreamlib.stage_experts``."""

from pathlib import Path

import torch

from dreamlib.experts import ExpertSettings, expert_folder, train_experts
from dreamlib.params import DistillParams
from dreamlib.project import Project
from dreamlib.provenance import code_hash
from dreamlib.sampling import class_pool
from dreamlib.seeding import generator


def run_experts(project: Project, seed: int = 0) -> list[Path]:
    """Train what is missing under results/experts, or use it again; returns the files, one an expert.

    Experts of whitened images, where a listed method asks for them, lie in results/experts/zca. Raises ValueError for
    fewer than one expert or epoch.
    """
    how, made = project.params.experts(), []
    settings, data = ExpertSettings(**how.model_dump(exclude={"images"})), project.split("train")
    rows = [class_pool(data, c, how.images, generator(seed, "expert-images", c)) for c in range(data.num_classes)]
    for whitening in whitenings_in_use(project):
        seen, info = project.seen(data, DistillParams(whitening=whitening, factor=1, bounded=whitening == "none"))
        made += train_experts(
            expert_folder(project.results / "experts", whitening), seen.subset(torch.cat(rows)), info, project.network,
            settings, project.compute, seed=seed, code_hash=code_hash("distillation", project.root),
        )  # fmt: skip
    return made


def whitenings_in_use(project: Project) -> list[str]:
    """The whitenings under which listed methods follow experts; 'none' when no listed method does."""
    p = project.params
    how = [p.distillation(method, ipc) for method in p.methods for ipc in p.ipc]
    return sorted({h.whitening for h in how if h.objective == "trajectory"} or {"none"})


if __name__ == "__main__":
    for path in run_experts(Project.open()):
        print(path)
