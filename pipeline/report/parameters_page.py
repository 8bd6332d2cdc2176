"""The tables of docs/parameters.md: ``python -m pipeline.report.parameters_page`` prints them.

Keys, types and defaults come from the pydantic models and the registered components; the meanings are defined here.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import BaseModel

from dreamlib.data.base import DATASETS
from dreamlib.matching import OBJECTIVES
from dreamlib.matching.label_sources import LABELS
from dreamlib.networks import NETWORKS
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import (
    ClusteringParams,
    ComputeParams,
    DistillParams,
    EvaluationParams,
    ExpertParams,
    NetworkParams,
)
from dreamlib.synthetic.initial import INITS
from pipeline.params import BatchesParams, Budget, CostParams, DataParams, Params
from pipeline.report.tables import markdown

# Names of JSON schema's types and limits; a section has no type.
TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "mapping", "null": "none"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

AUGMENTATION_MODE = (
    "how operations are combined, per batch or per image; see `Augmentation` in `dreamlib/training/augment.py`"
)

# Place of a section in the parameter files → its model and the meaning of each key.
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, str]]] = {
    "Top level of `params.yaml`": (
        Params,
        {
            "dataset": "data set to distil",
            "ipc": "stored images per class; every value is a run",
            "methods": "entries of `method` to run",
            "seeds": "seeds; each is a whole run with its own clusters, canvases, batches and networks",
            "budget": "entry of `budgets` to use",
            "compute": "section, see below",
            "data": "section, see below",
            "method": "methods by name: keys of `distillation`, sections `clustering` and `evaluation`, overrides",
            "budgets": "budgets by name, see below",
        },
    ),
    "`compute`": (
        ComputeParams,
        {
            "device": "`auto`, `cpu`, `cuda` or one GPU, such as `cuda:1`",
            "precision": "number format of activations, not of parameters; `auto` is bfloat16 on a GPU that has it, "
            "and on a CPU that has it if loops are compiled; else float32",
            "threads": "CPU threads of a process; 0 uses torch's number",
            "compile": "let budgets compile their inner loops; needs a C++ compiler",
            "workers": "processes that share a distillation's classes and an evaluation's networks",
        },
    ),
    "`data`": (
        DataParams,
        {"directory": "folder of the data", "options": "options of the data set, see [Components](#components)"},
    ),
    "`network`": (
        NetworkParams,
        {
            "name": "matched network, and the evaluation network unless `evaluation.networks` lists others",
            "options": "options of the network, see [Components](#components)",
        },
    ),
    "`budgets.<name>`": (
        Budget,
        {
            "compile": "compile the inner loops, if `compute.compile` allows it; worth it from hundreds of iterations",
            "network": "section, see above",
            "validation_per_class": "training images per class held out for choosing settings; 0 draws no curves",
            "clustering": "section, see below",
            "distillation": "section, see below",
            "experts": "section, see below",
            "evaluation": "section, see below",
            "by_dataset": "the same sections for single data sets, each with `by_factor` for a factor and larger ones",
        },
    ),
    "`clustering`": (
        ClusteringParams,
        {
            "features": "feature space of the initial clustering: pixels, an untrained or a briefly trained network",
            "pick": "image per cluster: nearest of its members, or nearest of all as in DREAM's released code",
            "epochs": "training before clustering with `features: trained`, in passes over the real images",
            "pool": "training images per class that are clustered; 0 uses all",
            "max_iterations": "maximum number of Lloyd steps of k-means",
        },
    ),
    "`distillation`, and an entry of `method`": (
        DistillParams,
        {
            "objective": "quantity that is matched, see [Components](#components)",
            "options": "options of the objective",
            "init": "initialisation of the canvases, see [Components](#components)",
            "shrink": "how images are downscaled for a canvas: average or nearest pixel",
            "factor": "a canvas holds factor² training images",
            "decode": "rule that decodes canvases: all alike, bounded per class (IDC), or frequencies (FreD)",
            "sampler": "choice of the real images that are matched, see [Components](#components)",
            "real_batch": "real images per class in a matching step",
            "per_cluster": "images taken from each cluster; divides `real_batch`",
            "interval": "inner iterations between two clusterings",
            "pool": "images per class clustered during distillation; a random subset if there are more; 0 uses all",
            "cluster_features": "feature space: current network, its spatial mean, an untrained network, or pixels",
            "warm_start": "initialise a clustering with the previous centres on the same network",
            "synthetic_batch": "decoded images per class in a matching step; a random subset if there are more",
            "outer_iterations": "number of fresh networks",
            "inner_iterations": "matching steps per fresh network",
            "image_optimizer": "optimiser of the canvases",
            "image_lr": "step size on pixels, or on coefficients with `decode: dct`",
            "image_lr_rule": "`scaled` multiplies it by ipc/10 · (side/32)² (28 in place of 32 on MNIST)",
            "image_lr_schedule": "constant, cosine to zero or to a tenth, or halved after every tenth of the run",
            "bounded": "canvases hold pixels in [0, 1], clamped after each outer iteration; else normalised pixels",
            "statistics": "mean and deviation of the normalisation: IDC's or DC's",
            "image_momentum": "momentum of SGD on the canvases",
            "image_update": "a step per class, an equivalent single step, or a single step with momentum",
            "learned_lr": "step size for what is learned in addition to pixels",
            "augmentation": "operations on real and synthetic images in matching, joined by `_`",
            "augmentation_mode": AUGMENTATION_MODE,
            "train_on": "images that the network trains on between matching steps",
            "network_steps": "training steps of the network after each matching step",
            "network_batch": "batch of these steps",
            "network_lr": "their learning rate",
            "network_momentum": "their momentum",
            "network_weight_decay": "their weight decay",
            "network_augmentation": "their augmentation",
            "cutmix": "their probability of CutMix",
            "pretrain_epochs": "passes over the real images before a network's first matching step",
            "labels": "source of the labels, see [Components](#components)",
            "whitening": "`zca` whitens the real images (MTT); needs `factor: 1` and `bounded: false`",
            "teacher_epochs": "passes that train the teacher, with `labels: assigned`",
            "parallel_classes": "classes clustered and matched side by side on a CPU",
            "checkpoint_every_s": "seconds between two checkpoints",
            "snapshots": "canvases stored during distillation, for accuracy curves",
        },
    ),
    "`evaluation`": (
        EvaluationParams,
        {
            "protocol": "evaluation protocol whose values are the defaults of the keys below",
            "networks": "networks trained on the set; the first one's accuracy is reported for it; none: `network`",
            "repeats": "fresh networks of each kind",
            "parallel_networks": "networks trained side by side on a CPU",
            "views": "further evaluations: no augmentation, IDC's protocol, hard labels in place of soft ones",
            "decay": "learning rate: × 0.2 at 2/3 and 5/6 of the epochs, or × 0.1 after half of them",
            "epochs": "passes over the set",
            "batch": "images in a step",
            "lr": "learning rate",
            "momentum": "momentum",
            "weight_decay": "weight decay",
            "augmentation": "operations, joined by `_`",
            "augmentation_mode": AUGMENTATION_MODE,
            "cutmix": "probability of CutMix",
            "clean_share": "final fraction of the epochs, without CutMix and with mirroring only",
            "last_layer": "`ridge` refits the last layer by ridge regression after training",
            "last_layer_penalty": "penalty of that regression",
            "learned_lr": "train with the step size learned with the set (MTT)",
            "replay": "train with the unrolled steps and the learned rates (DD, RaT-BPTT)",
            "curve_networks": "networks for accuracy by iteration; 0 draws no curve",
            "curve_epochs": "their epochs",
        },
    ),
    "`experts`": (
        ExpertParams,
        {
            "images": "training images per class; 0 uses all",
            "count": "number of trajectories",
            "epochs": "epochs of each",
            "batch": "images in a step",
            "lr": "learning rate",
            "momentum": "momentum",
            "weight_decay": "weight decay",
            "augmentation": "operations, joined by `_`",
            "mode": AUGMENTATION_MODE,
        },
    ),
    "`batches` of the study of claims": (
        BatchesParams,
        {
            "points": "training steps after which batches are compared",
            "pool": "images that represent each class",
            "draws": "batches per randomly drawn kind",
            "shown": "class whose batches are shown",
        },
    ),
    "`cost` of the study of claims": (
        CostParams,
        {
            "points": "training steps on the full data after which accuracy is measured",
            "batch": "images in a step",
            "repeats": "networks",
        },
    ),
}


def parameters() -> str:
    """Return a table per section: every key with its type, default and meaning.

    Raise ValueError if a key has no meaning here, or a meaning no key.
    """
    return "\n".join(f"### {where}\n\n{_section(model, meanings)}" for where, (model, meanings) in SECTIONS.items())


def _section(model: type[BaseModel], meanings: Mapping[str, str]) -> str:
    if set(model.model_fields) != set(meanings):
        differing = ", ".join(sorted(set(model.model_fields) ^ set(meanings)))
        raise ValueError(f"{model.__name__}: {differing} must be both a key of the model and explained in SECTIONS")
    rows = []
    for key, schema in model.model_json_schema()["properties"].items():
        value = model.model_fields[key].get_default(call_default_factory=True)
        default = "its defaults" if "$ref" in schema else "–" if value in (None, "") else f"`{_yaml(value)}`"
        default = "required" if model.model_fields[key].is_required() else default
        rows.append((f"`{key}`", type_name(schema), default, meanings[key]))
    return markdown(("key", "type", "default", "meaning"), rows)


def type_name(schema: Mapping[str, Any]) -> str:
    """Return a type of JSON schema with its limits, formatted for the tables.

    >>> type_name({"type": "integer", "minimum": 1}), type_name({"enum": ["sgd", "adam"], "type": "string"})
    ('int ≥ 1', '`sgd`, `adam`')
    >>> type_name({"type": "array", "items": {"type": "number"}})
    'list of float'
    """
    if "anyOf" in schema:
        return " or ".join(map(type_name, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "items" in schema:
        return f"list of {'networks' if '$ref' in schema['items'] else type_name(schema['items'])}"
    limits = ", ".join(f"{sign} {schema[limit]:g}" for limit, sign in LIMITS.items() if limit in schema)
    return f"{TYPES[schema['type']] if 'type' in schema else 'section'} {limits}".strip()


def components() -> str:
    """Return the registered components by kind, with their options and defaults."""
    parts = []
    for kind, registry in (("objective", OBJECTIVES), ("network", NETWORKS), ("data set", DATASETS)):
        rows = []
        for name in registry.names():
            options = [f"`{option.name}: {_yaml(option.default)}`" for option in fields(registry[name])]
            rows.append((f"`{name}`", _summary(registry[name]), ", ".join(options) or "–"))
        parts.append(markdown((kind, "what it is", "options and their defaults"), rows))
    for kind, registry in (("init", INITS), ("sampler", SAMPLERS), ("labels", LABELS)):
        rows = [(f"`{name}`", _summary(registry[name])) for name in registry.names()]
        parts.append(markdown((kind, "what it is"), rows))
    return "\n".join(parts)


def _summary(component: type) -> str:
    return (component.__doc__ or "").splitlines()[0].replace("``", "`")


def _yaml(value: Any) -> str:
    """Return a default formatted as YAML."""
    names = {True: "true", False: "false", None: "null", "": '""'}
    plain = isinstance(value, bool | None) or value == ""
    return names[value] if plain else str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    print(parameters(), components(), sep="\n")
