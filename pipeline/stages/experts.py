"""Trajectories for trajectory matching, made once for all settings: ``python -m pipeline.stages.experts``."""

import sys
from pathlib import Path

import torch

from dreamlib._engine.seeding import generator
from dreamlib.matching.experts import expert_folder, train_experts
from dreamlib.sampling.real_batches import class_pool
from dreamlib.settings import DistillParams
from pipeline.failures import exit_status
from pipeline.project import Project, code_hash

SEED = 0  # experts are shared by all seeds


def run_experts(project: Project) -> list[Path]:
    """Train the experts missing under results/experts, or reuse them; return the files, one per expert.

    Experts of whitened images, if a listed method uses them, are in results/experts/zca.
    """
    project.require_writable(project.results / "experts" / "")
    settings, data, files = project.params.experts(), project.split("train"), []
    rows = [class_pool(data, c, settings.images, generator(SEED, "expert-images", c)) for c in range(data.num_classes)]
    for input_settings in expert_input_settings(project):
        images, info = project.images_for_method(data, input_settings)
        files += train_experts(
            expert_folder(project.results / "experts", input_settings.whitening), images.subset(torch.cat(rows)), info,
            project.network, settings, project.compute, seed=SEED, code_hash=code_hash(project.root),
        )  # fmt: skip
    return files


def expert_input_settings(project: Project) -> list[DistillParams]:
    """Return one method's settings per whitening among listed methods with experts; the defaults if there is none."""
    p = project.params
    distillations = [p.distillation(method, ipc) for method in p.methods for ipc in p.ipc]
    by_whitening = {settings.whitening: settings for settings in distillations if settings.objective == "trajectory"}
    return [by_whitening[whitening] for whitening in sorted(by_whitening)] or [DistillParams()]


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(*run_experts(Project.open()), sep="\n")))
