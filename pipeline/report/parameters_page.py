"""The tables of docs/parameters.md: ``python -m pipeline.report.parameters_page`` prints them.

Keys, types and defaults are those of the pydantic models and of the registered components; the meanings are kept here.
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

# Where a section stands in the parameter files → its model and the meaning of each key.
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, str]]] = {
    "Top level of `params.yaml`": (
        Params,
        {
            "dataset": "data set to distil",
            "ipc": "stored images per class; every value is a run",
            "methods": "entries of `method` to run",
            "seeds": "seeds; each is a whole run with its own clusters, canvases, batches and networks",
            "budget": "entry of `budgets` in force",
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
            "threads": "CPU threads of a process; 0 leaves torch's number",
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
            "name": "network that is matched, and evaluated unless `evaluation.networks` lists others",
            "options": "options of the network, see [Components](#components)",
        },
    ),
    "`budgets.<name>`": (
        Budget,
        {
            "compile": "compile the inner loops, if `compute.compile` allows it; pays from hundreds of iterations on",
            "network": "section, see above",
            "validation_per_class": "training images per class held out for choosing settings; 0 draws no curves",
            "clustering": "section, see below",
            "distillation": "section, see below",
            "experts": "section, see below",
            "evaluation": "section, see below",
            "by_dataset": "the same sections for single data sets, each with `by_factor` for a factor and those above",
        },
    ),
    "`clustering`": (
        ClusteringParams,
        {
            "features": "space that the start is clustered in: pixels, an untrained or a briefly trained network's",
            "pick": "image per cluster: nearest of its members, or nearest of all as in DREAM's released code",
            "epochs": "training before clustering with `features: trained`, in passes over the real images",
            "pool": "training images per class that are clustered; 0 takes all",
            "max_iterations": "Lloyd steps of k-means at most",
        },
    ),
    "`distillation`, and an entry of `method`": (
        DistillParams,
        {
            "objective": "quantity that is matched, see [Components](#components)",
            "options": "options of the objective",
            "init": "start of the canvases, see [Components](#components)",
            "shrink": "how images are made small for a canvas: average or nearest pixel",
            "factor": "a canvas holds factor² training images",
            "decode": "rule that cuts canvases: all alike, bounded per class (IDC), or frequencies (FreD)",
            "sampler": "choice of the real images that are matched, see [Components](#components)",
            "real_batch": "real images per class in a matching step",
            "per_cluster": "images taken from each cluster; divides `real_batch`",
            "interval": "inner iterations between two clusterings",
            "pool": "images per class that enter a clustering on the way; 0 takes all",
            "cluster_features": "space of that clustering: current or one untrained network, pooled features or pixels",
            "warm_start": "start a clustering from the previous centres on the same network",
            "synthetic_batch": "decoded images per class in a matching step; more are drawn from at random",
            "outer_iterations": "fresh networks",
            "inner_iterations": "matching steps for each fresh network",
            "image_optimizer": "optimiser of the canvases",
            "image_lr": "step size on pixels, or on coefficients with `decode: dct`",
            "image_lr_rule": "`scaled` multiplies it by ipc/10 · (side/32)² (28 in place of 32 on MNIST)",
            "image_lr_schedule": "constant, cosine to zero or to a tenth, or halved after every tenth of the run",
            "bounded": "canvases hold pixels in [0, 1], clamped after each outer iteration; else normalised pixels",
            "statistics": "mean and deviation of the normalisation: IDC's or DC's",
            "image_momentum": "momentum of SGD on the canvases",
            "image_update": "a step per class, the single step that equals it, or a single step with momentum",
            "learned_lr": "step size for what is learned besides pixels",
            "augmentation": "operations on real and synthetic images in matching, joined by `_`",
            "augmentation_mode": "family of operations and strengths: IDC's, DSA's or DC's",
            "train_on": "images that the network trains on between matchings",
            "network_steps": "training steps of the network after each matching",
            "network_batch": "batch of these steps",
            "network_lr": "their learning rate",
            "network_momentum": "their momentum",
            "network_weight_decay": "their weight decay",
            "network_augmentation": "their augmentation",
            "cutmix": "their probability of CutMix",
            "pretrain_epochs": "passes over the real images before a network's first matching",
            "labels": "source of the labels, see [Components](#components)",
            "whitening": "`zca` whitens the real images (MTT); needs `factor: 1` and `bounded: false`",
            "teacher_epochs": "training of the teacher, with `labels: assigned`",
            "parallel_classes": "classes clustered and matched side by side on a CPU",
            "checkpoint_every_s": "seconds between two checkpoints",
            "snapshots": "canvases kept on the way, for accuracy curves",
        },
    ),
    "`evaluation`": (
        EvaluationParams,
        {
            "protocol": "published protocol whose values are the defaults of the keys below",
            "networks": "networks trained on the set; the first one's accuracy stands for it; none: `network`",
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
            "augmentation_mode": "family of operations and strengths",
            "cutmix": "probability of CutMix",
            "clean_share": "last share of the epochs without CutMix and with mirror images alone",
            "last_layer": "`ridge` fits the last layer anew by ridge regression after training",
            "last_layer_penalty": "penalty of that regression",
            "learned_lr": "train at the step size that the set learned (MTT)",
            "replay": "train by the steps and rates that the set learned (DD, RaT-BPTT)",
            "curve_networks": "networks for accuracy against iterations; 0 draws no curve",
            "curve_epochs": "epochs of these",
        },
    ),
    "`experts`": (
        ExpertParams,
        {
            "images": "training images per class; 0 takes all",
            "count": "trajectories",
            "epochs": "epochs of each",
            "batch": "images in a step",
            "lr": "learning rate",
            "momentum": "momentum",
            "weight_decay": "weight decay",
            "augmentation": "operations, joined by `_`",
            "mode": "family of operations and strengths",
        },
    ),
    "`batches` of the study of claims": (
        BatchesParams,
        {
            "points": "training steps after which batches are compared",
            "pool": "images that stand for a class",
            "draws": "batches of each kind that is drawn at random",
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
    """Return a table for each section: every key with its type, default and meaning.

    Raises ValueError where a key has no meaning here, or a meaning no key.
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
    """Return a type of JSON schema as the tables show it, with its limits.

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
    """Return a default as it would be written in YAML."""
    names = {True: "true", False: "false", None: "null", "": '""'}
    plain = isinstance(value, bool | None) or value == ""
    return names[value] if plain else str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    print(parameters(), components(), sep="\n")
