"""Trajectories for trajectory matching, made once for all settings: ``python -m pipeline.stages.experts``."""

import sys
from pathlib import Path

import torch

from dreamlib._engine.seeding import generator
from dreamlib.matching.experts import expert_folder, train_experts
from dreamlib.sampling.real_batches import class_pool
from dreamlib.settings import DistillParams
from pipeline.failures import exit_status
from pipeline.project import Project
from pipeline.report.provenance import code_hash


def run_experts(project: Project, seed: int = 0) -> list[Path]:
    """Train what is missing under results/experts, or use it again; returns the files, one an expert.

    Experts of whitened images, where a listed method asks for them, lie in results/experts/zca. Raises ValueError for
    fewer than one expert or epoch.
    """
    project.require_writable(project.results / "experts" / "")
    settings, data, files = project.params.experts(), project.split("train"), []
    rows = [class_pool(data, c, settings.images, generator(seed, "expert-images", c)) for c in range(data.num_classes)]
    for follower in inputs_of_followers(project):
        images, info = project.seen(data, follower)
        files += train_experts(
            expert_folder(project.results / "experts", follower.whitening), images.subset(torch.cat(rows)), info,
            project.network, settings, project.compute, seed=seed, code_hash=code_hash(project.root),
        )  # fmt: skip
    return files


def inputs_of_followers(project: Project) -> list[DistillParams]:
    """How listed methods that follow experts see real images, one for each whitening; without one, as they are."""
    p = project.params
    distillations = [p.distillation(method, ipc) for method in p.methods for ipc in p.ipc]
    followers = {settings.whitening: settings for settings in distillations if settings.objective == "trajectory"}
    return [followers[whitening] for whitening in sorted(followers)] or [DistillParams()]


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(*run_experts(Project.open()), sep="\n")))
