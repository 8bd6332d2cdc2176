"""The baselines of a judged set, of about its storage: random real images, k-means medoids and our best set."""

from dataclasses import replace

import torch
from torch import Tensor

from dreamlib._engine.files import read_json, write_json
from dreamlib.sampling.representatives import cluster_class
from dreamlib.settings import digest
from dreamlib.synthetic.initial import check_budget, fill, random_rows
from dreamlib.synthetic.synthetic_set import BEST_FOLDER, SyntheticSet
from pipeline.project import Project, code_hash
from pipeline.stages.evaluation import content_hash

SAME_STORAGE = 0.02  # maximum relative difference of stored floats


def real_per_class(judged_set: SyntheticSet) -> int:
    """Return how many real images per class come closest to a set's stored floats, at least 1.

    >>> real_per_class(SyntheticSet(torch.zeros(20, 1, 4, 4), torch.arange(20) // 2, 10, factor=2))
    2
    """
    return max(1, round(judged_set.stored_floats / (judged_set.num_classes * judged_set.canvases[0].numel())))


def random_set(project: Project, judged_set: SyntheticSet, seed: int) -> SyntheticSet:
    """Return random real training images in the storage and the units of ``judged_set``."""
    train, count = project.split("train"), real_per_class(judged_set)
    check_budget(train, project.info, count, 1)
    return _in_units_of(judged_set, project, random_rows(train, count, seed))


def medoid_set(project: Project, judged_set: SyntheticSet) -> SyntheticSet:
    """Return the real images nearest to k-means centres, in the storage and the units of ``judged_set``.

    The centres are computed in the features of an untrained network. The chosen rows are stored in .dream/judged.
    """
    train, count = project.split("train"), real_per_class(judged_set)
    check_budget(train, project.info, count, 1)
    key = digest(project.data_hash, count, project.used_params.compute, code_hash(project.root))
    path = project.root / ".dream" / "judged" / f"medoids-{key}.json"
    if not path.is_file():
        placed, embedder = train.to(project.compute.device), project.embedder(0)
        chosen = [cluster_class(placed, c, count, 0, embedder).representatives for c in range(train.num_classes)]
        write_json(path, torch.stack(chosen).tolist())
    return _in_units_of(judged_set, project, torch.tensor(read_json(path)))


def _in_units_of(judged_set: SyntheticSet, project: Project, rows: Tensor) -> SyntheticSet:
    """Return real training images, rows (K, n), as a set, normalised or whitened like ``judged_set``."""
    images, _ = project.images_in_units_of(project.split("train").subset(rows.flatten()), judged_set)
    units = ("bounded", "mean", "std", "whitening", "zca_epsilon")
    about = {key: judged_set.info[key] for key in units if key in judged_set.info}
    return replace(fill(images, torch.arange(rows.numel()).view(rows.shape), rows.shape[1], 1, "single"), info=about)


def best_set_of_same_storage(project: Project, judged_set: SyntheticSet) -> SyntheticSet | None:
    """Return the set of results/best with the same data set and storage, unless it is ``judged_set``; else None."""
    floats, judged_hash = judged_set.stored_floats, content_hash(judged_set)
    for path in sorted((project.root / BEST_FOLDER).glob(f"{project.params.dataset}-ipc*.safetensors")):
        best = SyntheticSet.open(path)
        if abs(best.stored_floats - floats) <= SAME_STORAGE * floats and content_hash(best) != judged_hash:
            return best
    return None
