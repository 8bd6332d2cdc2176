"""The distillation stage: one setting from its initial canvases to its file."""

from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dreamlib._engine import ranks
from dreamlib._engine.checkpoint import Checkpoint
from dreamlib._engine.files import write_atomically, write_json
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.distill import Distiller, DistillResult
from dreamlib.matching import make as make_objective
from dreamlib.matching.label_sources import LabelState, label
from dreamlib.networks import build
from dreamlib.settings import DistillParams, digest
from dreamlib.synthetic.initial import INITS, StartState, check_budget
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.project import Project, Setting, code_hash
from pipeline.stages.clustering import representatives


def starting_set(
    project: Project, setting: Setting, distillation: DistillParams, data: LabeledImages, info: DatasetInfo
) -> SyntheticSet:
    """Return the canvases before distillation, initialised by the method's ``init``.

    ``data`` and ``info`` are the training images in the units of the canvases.
    """
    check_budget(data, info, setting.ipc, distillation.factor, distillation.decode, distillation.init)
    clustering = project.params.clustering(setting.method)
    state = StartState(
        data,
        info,
        distillation,
        setting.ipc,
        setting.seed,
        pixels=project.split("train"),
        pool=clustering.pool,
        embedder=lambda: project.embedder(setting.seed, clustering),
        representatives=lambda count: representatives(project, setting, count),
    )
    return INITS[distillation.init]().start(state)


def parameter_hash(project: Project, setting: Setting) -> str:
    """Return a hash of every parameter that affects a distilled set, except those of experts."""
    p = project.used_params
    distillation = p.distillation(setting.method, setting.ipc).model_dump(exclude={"checkpoint_every_s"})
    compute = p.compute.model_dump(exclude={"workers"})  # the number of workers does not affect the set
    held_out, clustering = p.validation_per_class, p.clustering(setting.method)
    return digest(p.dataset, setting.name, distillation, clustering, p.network, p.data, held_out, compute)


def _experts(project: Project, distillation: DistillParams, info: DatasetInfo) -> Any:
    """Return the parameters of the experts that a run follows, or None; raise ExpertError if any is missing."""
    name, options = project.network
    network = build(name, info, torch.Generator(), options)
    experts = make_objective(distillation.objective, distillation.options).open_experts(network, info)
    if experts is None:
        return None
    params = project.params.experts()
    experts.check_complete(params.count, params.epochs)
    return params


def run_distillation(project: Project, setting: Setting) -> DistillResult:
    """Distil one setting, resuming where a killed run stopped, and write its set, snapshots, history and metrics.

    results/sets/<name>.safetensors is the set; results/distillation/<name>.{json,csv} its metrics and loss history;
    results/snapshots/<name>.safetensors the canvases during distillation. With ``compute.workers`` above 1 the classes
    are shared among that many processes; the first of them writes.
    """
    project.require_listed(setting.method, setting.ipc, setting.seed)
    project.require_writable(*(project.file(kind, setting, "") for kind in ("sets", "snapshots", "distillation")))
    if project.run_in_workers("distillation", setting):
        return read_result(project, setting)
    distillation = project.params.distillation(setting.method, setting.ipc)
    data, info = project.images_for_method(project.split("train"), distillation)
    experts = _experts(project, distillation, info)
    start = starting_set(project, setting, distillation, data, info)
    hashes = {"parameter_hash": parameter_hash(project, setting), "data_hash": project.data_hash}
    key = digest(hashes, code_hash(project.root), experts)
    checkpoint = Checkpoint(project.root / ".dream" / "checkpoints", f"{setting.name}-{key}")
    run = Distiller(start, data, info, distillation, project.network, project.compute, setting.seed)
    result = run.run(checkpoint, setting.name)
    if not ranks.first():
        return result
    state = LabelState(data, info, distillation, project.network, project.compute, setting.seed)
    result.synthetic = label(result.synthetic, state)
    result.synthetic.info |= describe(project, setting, distillation) | hashes
    _write_distillation(project, setting, result)
    checkpoint.delete()
    project.record_timings(f"distillation-{setting.name}", result.seconds, snapshots_s=result.clock)
    return result


def describe(project: Project, setting: Setting, distillation: DistillParams) -> dict[str, Any]:
    """Return a set's provenance and units, without hashes."""
    image = project.split("train").subset(torch.arange(1))
    _, info = project.images_for_method(image, distillation.model_copy(update={"bounded": True}))
    units = {"whitening": info.whitening} if info.whitening != "none" else {}
    return units | {
        "bounded": distillation.bounded,
        "dataset": info.name,
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "method": setting.method,
        "seed": setting.seed,
        "budget": project.params.budget,
        "augmentation": distillation.augmentation,
        "augmentation_mode": distillation.augmentation_mode,
    }


def _write_distillation(project: Project, setting: Setting, result: DistillResult) -> None:
    snapshots = {f"{iteration:07d}": canvases for iteration, canvases in result.snapshots.items()}
    write_atomically(project.file("snapshots", setting, ".safetensors"), save(snapshots))
    history = pd.DataFrame(result.history, columns=["iteration", "loss"])
    write_atomically(project.file("distillation", setting, ".csv"), history.to_csv(index=False).encode())
    sha256 = result.synthetic.save(project.file("sets", setting, ".safetensors"))
    metrics = {
        "iterations": len(result.history),
        "first_loss": result.history[0][1] if result.history else None,
        "last_loss": result.history[-1][1] if result.history else None,
        "stored_floats": result.synthetic.stored_floats,
        "training_images": len(result.synthetic.decode()[1]),
        "sha256": sha256,
    }
    write_json(project.file("distillation", setting, ".json"), metrics)


def read_result(project: Project, setting: Setting) -> DistillResult:
    """Return a distillation read from its files; timings are those of this machine's last run of that name."""
    history = pd.read_csv(project.file("distillation", setting, ".csv"))
    rows = list(zip(history["iteration"].tolist(), history["loss"].tolist(), strict=True))
    seconds = project.timings(f"distillation-{setting.name}")
    return DistillResult(read_set(project, setting), rows, read_snapshots(project, setting), seconds)


def read_snapshots(project: Project, setting: Setting) -> dict[int, Tensor]:
    """Return iteration → canvases, as stored by the distillation stage."""
    path = project.file("snapshots", setting, ".safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the stage that makes it (dvc.yaml or studies/dvc.yaml)")
    return {int(key): canvases for key, canvases in sorted(load_file(path).items())}


def read_set(project: Project, setting: Setting) -> SyntheticSet:
    """Return the distilled set of one setting."""
    return SyntheticSet.open(project.file("sets", setting, ".safetensors"))


def read_pictures(project: Project, setting: Setting) -> Tensor:
    """Return the stored canvases of one setting as pictures (K·ipc, C, H, W) in [0, 1]."""
    return project.pictures(read_set(project, setting))
