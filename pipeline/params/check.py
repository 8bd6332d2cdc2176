"""Validation of names, combinations and data before any stage starts."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch

from dreamlib._engine.ranks import check_device
from dreamlib._engine.registry import configured, option
from dreamlib._engine.strategies import check_workers
from dreamlib.data import DATASETS, create
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import ParameterError
from dreamlib.matching import OBJECTIVES
from dreamlib.matching import make as make_objective
from dreamlib.matching.label_sources import LABELS
from dreamlib.networks import NETWORKS, build
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import DistillParams, EvaluationParams, NetworkParams
from dreamlib.synthetic.initial import INITS, check_budget, images_needed
from dreamlib.training.augment import Augmentation
from pipeline.params.errors import KeyPath, at_keys, check_keys, validated
from pipeline.params.images import check_images
from pipeline.params.models import Params

# Keys of `distillation` that name a component.
COMPONENT_KEYS = {"objective": OBJECTIVES, "init": INITS, "sampler": SAMPLERS, "labels": LABELS}


def check_names(params: Params) -> None:
    """Reject names of components and options that do not exist, whether used or not, and contradictory settings.

    Raise ParameterError with the keys that lead to the value, or the method, and the remedy.
    """
    with at_keys("compute", "device"):
        check_device(params.compute.device, params.compute.workers)
    with at_keys("dataset"):
        dataset = DATASETS[params.dataset]
    _check_options(params.data.options, [dataset], ("data",), f"data set '{params.dataset}'")
    with at_keys("data", "options"):
        create(params.dataset, params.data.options)
    for name, budget in params.budgets.items():
        _check_network(budget.network, ("budgets", name, "network"))
    for kind, (keys, values) in params.every_section():
        _check_section(kind, keys, values)
    for method in params.methods:
        for ipc in params.ipc:
            with at_keys(where=f"method {method}, ipc {ipc}"):
                settings, protocol = params.distillation(method, ipc), params.evaluation(method, ipc)
                _check_effects(settings)
                Augmentation.parse(settings.augmentation, settings.augmentation_mode)
                Augmentation.parse(settings.network_augmentation, settings.augmentation_mode)
                Augmentation.parse(protocol.augmentation, protocol.augmentation_mode)
    with at_keys(where="experts"):
        Augmentation.parse(params.experts().augmentation, params.experts().mode)


def _check_section(kind: str, keys: KeyPath, values: Mapping[str, Any]) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        if key == "by_dataset":
            with at_keys(*keys[: depth + 1]):
                DATASETS[str(keys[depth])]
    if kind == "distillation":
        for key, registry in COMPONENT_KEYS.items():
            for name in _values_for_all_ipcs(values.get(key)):
                with at_keys(*keys, key):
                    registry[str(name)]
        objective, options = values.get("objective"), values.get("options", {})
        kinds = [OBJECTIVES[name] for name in ([objective] if isinstance(objective, str) else OBJECTIVES)]
        _check_options(options, kinds, keys, "the objective")
        if isinstance(objective, str):
            for name, value in options.items():
                for single in _values_for_all_ipcs(value):
                    with at_keys(*keys, "options", name):
                        option(kinds[0], name, single, f"objective '{objective}'")
    for value in _values_for_all_ipcs(values.get("networks") if kind == "evaluation" else None):
        evaluation = validated(EvaluationParams, {"networks": value}, lambda within: (*keys, *within))
        for network in evaluation.networks:
            _check_network(network, (*keys, "networks"))


def _values_for_all_ipcs(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping) and all(isinstance(key, int) for key in value):
        return value.values()
    return [] if value is None else [value]


def _check_network(network: NetworkParams, keys: KeyPath) -> None:
    what = f"network '{network.name}'"
    with at_keys(*keys, "name"):
        family = NETWORKS[network.name]
    _check_options(network.options, [family], keys, what)
    with at_keys(*keys, "options"):
        configured(family, network.options, what)


def _check_options(options: Any, kinds: Iterable[Any], keys: KeyPath, what: str) -> None:
    """Reject an option that no kind of the component has."""
    known = {field.name for kind in kinds for field in fields(kind)}
    check_keys(options, known, (*keys, "options"), "option", what)


def _check_effects(settings: DistillParams) -> None:
    """Reject settings without effect; raise ParameterError, or as ``make_objective`` does."""
    objective = make_objective(settings.objective, settings.options)
    if settings.sampler != "random" and not objective.uses_sampler:
        remedy = f", or {objective.sampler_option}, which takes its batches" if objective.sampler_option else ""
        raise ParameterError(
            f"sampler: {settings.sampler} has no effect, since objective '{settings.objective}' with these options "
            f"does not use a sampler's batches; set sampler: random{remedy}"
        )
    if LABELS[settings.labels].soft and objective.learns_labels:
        raise ParameterError(
            f"labels: {settings.labels} would replace the labels that options.learn_labels learns; set labels: hard, "
            "or learn_labels: false"
        )
    if settings.sampler == "released" and not settings.bounded:
        raise ParameterError(
            "sampler: released clusters un-normalised images, which bounded: false does not have; set bounded: true, "
            "or sampler: representative"
        )
    if settings.pretrain_epochs and settings.train_on != "real":
        raise ParameterError(
            f"pretrain_epochs = {settings.pretrain_epochs:g} has no effect with train_on: {settings.train_on}; set it "
            "to 0, or train_on: real"
        )


def _check_pool(params: Params, method: str, ipc: int, settings: DistillParams) -> None:
    """Reject a clustering pool smaller than the number of images to choose; raise ParameterError."""
    pool, needed = params.clustering(method).pool, images_needed(ipc, settings.factor, settings.decode)
    if INITS[settings.init].uses_pool and 0 < pool < needed:
        raise ParameterError(
            f"params.yaml: clustering.pool = {pool} of budget {params.budget}, but method {method} (init: "
            f"{settings.init}) starts from {needed} images per class at ipc {ipc}; raise the pool to {needed}, or set "
            "0 for all images"
        )


def preflight(params: Params, info: DatasetInfo, train: LabeledImages) -> None:
    """Check early what would otherwise fail late: the data are complete, and every setting is possible with them.

    Raise ParameterError, ValueError or DataError with the value, the limit and the remedy.
    """
    counts = torch.bincount(train.labels, minlength=info.num_classes)
    check_images(params, info, counts + params.validation_per_class)
    matched = build(params.network.name, info, torch.Generator(), params.network.options)
    for method in params.methods:
        for ipc in params.ipc:
            for network in params.evaluation(method, ipc).networks:
                build(network.name, info, torch.Generator(), network.options)
            settings = params.distillation(method, ipc)
            with at_keys(where=f"method {method}"):
                in_turn = settings.image_update == "per_class" and settings.outer_iterations > 0
                check_workers(params.compute.workers, info.num_classes, in_turn)
            check_budget(train, info, ipc, settings.factor, settings.decode, settings.init)
            _check_pool(params, method, ipc, settings)
            objective = make_objective(settings.objective, settings.options)
            objective.check(matched, info, params.experts().epochs)
