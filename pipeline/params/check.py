"""The one door of validation: names, combinations and data, checked before any stage begins its work."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dreamlib.data import DATASETS
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import ParameterError, unknown
from dreamlib.matching import make as make_objective
from dreamlib.matching.label_sources import LABELS
from dreamlib.networks import NETWORKS, build
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import ComputeParams, DistillParams
from dreamlib.synthetic.initial import INITS, check_budget, images_needed
from dreamlib.training.augment import Augmentation
from dreamlib.training.features import feature_channels
from pipeline.params.images import check_images
from pipeline.params.models import Params


def _check_workers(compute: ComputeParams, how: DistillParams, method: str) -> None:
    if compute.workers == 1:
        return
    if how.image_update == "per_class" and how.outer_iterations:
        raise ParameterError(
            f"params.yaml: compute.workers = {compute.workers}, but method {method} has image_update: per_class, which "
            "takes the classes in turn; use batched or once_equivalent, or workers: 1"
        )
    if compute.device not in ("auto", "cpu", "cuda"):
        raise ParameterError(
            f"params.yaml: compute.workers = {compute.workers}, but compute.device {compute.device} names one device; "
            "use auto, cuda or cpu, or workers: 1"
        )


def check_names(params: Params) -> None:
    """Every component params.yaml names exists with the options it gives; raises UnknownNameError or ParameterError."""
    if params.dataset not in DATASETS:
        raise unknown("data set", params.dataset, DATASETS.names())
    for budget in params.budgets.values():
        for name in budget.by_dataset:
            if name not in DATASETS:
                raise unknown("data set (under by_dataset)", name, DATASETS.names())
    for method, block in params.method.items():
        for name in _datasets_named(block, params.budgets):
            if name not in DATASETS:
                raise unknown(f"data set (under method.{method})", name, DATASETS.names())
    if params.network.name not in NETWORKS:
        raise unknown("network", params.network.name, NETWORKS.names())
    for method in params.methods:
        for ipc in params.ipc:
            how = params.distillation(method, ipc)
            for kind, registry in (("init", INITS), ("sampler", SAMPLERS), ("labels", LABELS)):
                registry[getattr(how, kind)]
            _check_workers(params.compute, how, method)
            _check_effects(method, how)
            Augmentation.parse(how.augmentation, how.augmentation_mode)
            Augmentation.parse(how.network_augmentation, how.augmentation_mode)
            judged = params.evaluation(method, ipc)
            Augmentation.parse(judged.augmentation, judged.augmentation_mode)
            for network in judged.networks:
                if network.name not in NETWORKS:
                    raise unknown("network (under evaluation.networks)", network.name, NETWORKS.names())
    Augmentation.parse(params.experts().augmentation, params.experts().mode)


def _datasets_named(block: Mapping[str, Any], budgets: Iterable[str]) -> set[str]:
    """The data sets a method's block has overrides for."""
    blocks = [block, *(block[budget] for budget in budgets if isinstance(block.get(budget), Mapping))]
    return {str(name) for each in blocks for name in each.get("by_dataset") or {}}


def _check_effects(method: str, how: DistillParams) -> None:
    """Refuse parameters that would be without effect; raises ParameterError, or as ``make_objective`` does."""
    objective, where = make_objective(how.objective, how.options), f"params.yaml: method {method}"
    if how.sampler != "random" and not objective.uses_sampler:
        remedy = f", or {objective.sampler_option}, which takes its batches" if objective.sampler_option else ""
        raise ParameterError(
            f"{where}: sampler: {how.sampler} has no effect, since objective '{how.objective}' with these options does "
            f"not use a sampler's batches; set sampler: random{remedy}"
        )
    if LABELS[how.labels].soft and objective.learns_labels:
        raise ParameterError(
            f"{where}: labels: {how.labels} would replace the labels that options.learn_labels learns; set labels: "
            "hard, or learn_labels: false"
        )
    if how.sampler == "released" and not how.bounded:
        raise ParameterError(
            f"{where}: sampler: released clusters un-normalised images, which bounded: false does not have; set "
            "bounded: true, or sampler: representative"
        )
    if how.pretrain_epochs and how.train_on != "real":
        raise ParameterError(
            f"{where}: pretrain_epochs = {how.pretrain_epochs:g} has no effect with train_on: {how.train_on}; set it "
            "to 0, or train_on: real"
        )


def _check_pool(params: Params, method: str, ipc: int, how: DistillParams) -> None:
    """Refuse a clustering among fewer images than it is to choose; raises ParameterError."""
    pool, needed = params.clustering(method).pool, images_needed(ipc, how.factor, how.decode)
    if INITS[how.init].uses_pool and 0 < pool < needed:
        raise ParameterError(
            f"params.yaml: clustering.pool = {pool} of budget {params.budget}, but method {method} (init: {how.init}) "
            f"starts from {needed} images a class at ipc {ipc}; raise the pool to {needed}, or 0 for all images"
        )


def preflight(params: Params, info: DatasetInfo, train: LabeledImages) -> None:
    """Everything that could only fail late, tried first: data present and whole, each setting possible with it.

    Raises ParameterError, ValueError or DataError with the value, the limit and the remedy.
    """
    if params.compute.workers > info.num_classes:
        raise ParameterError(
            f"params.yaml: compute.workers = {params.compute.workers} is more than the {info.num_classes} classes "
            f"of {params.dataset}, which are what workers share; use at most {info.num_classes}"
        )
    counts = torch.bincount(train.labels, minlength=info.num_classes)
    check_images(params, info, counts + params.validation_per_class)
    matched = build(params.network.name, info, torch.Generator(), params.network.options)
    for method in params.methods:
        for ipc in params.ipc:
            for network in params.evaluation(method, ipc).networks:
                build(network.name, info, torch.Generator(), network.options)
            how = params.distillation(method, ipc)
            check_budget(train, info, ipc, how.factor, how.decode, how.init)
            _check_pool(params, method, ipc, how)
            objective = make_objective(how.objective, how.options)
            objective.check(matched, info, params.experts().epochs)
            if how.cluster_features == "spatial_mean":
                feature_channels(matched)
