"""params.yaml, validated once at the door: every knob typed, ranged and explained, every error with its remedy."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from dreamlib.registry import unknown

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# A YAML list of one number may be written as the number.
IntList = Annotated[list[Natural], BeforeValidator(lambda v: v if isinstance(v, list) else [v])]


class ParameterError(ValueError):
    """params.yaml (or a stage's coordinate) asks for something that cannot be done; the message says what can."""


class Strict(BaseModel):
    """A section that refuses keys it does not know and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ComputeParams(Strict):
    """Where and how precisely to compute; see ``Compute.resolve``.

    ``workers`` processes share the classes of a distillation and the networks of an evaluation (``dreamlib.parallel``);
    ``threads`` are then shared too.
    """

    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    threads: Natural = 0
    compile: bool = False
    workers: Positive = 1


class DataParams(Strict):
    """Where the data lies, how many training images a class are held out for validation, a data set's own options."""

    directory: str = "data"
    validation_per_class: Natural = 500
    options: dict[str, Any] = {}


class NetworkParams(Strict):
    """A registered network and its options."""

    name: str = "convnet"
    options: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """As tables show it.

        >>> NetworkParams(name="convnet", options={"norm": "batch"}).label
        'convnet (norm batch)'
        """
        return self.name + (f" ({', '.join(f'{k} {v}' for k, v in self.options.items())})" if self.options else "")


# A network without options may be written as its name.
NetworkList = Annotated[
    list[Annotated[NetworkParams, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]],
    BeforeValidator(lambda v: v if isinstance(v, list) else [v]),
]


class ClusteringParams(Strict):
    """How the canvases' representatives are found; ``pool`` bounds how many random images of a class enter (0: all).

    DREAM's released code is features 'random_unnormalised' with pick 'released' (and shrink 'nearest').
    """

    features: Literal["pixels", "random", "random_unnormalised", "trained"] = "random"
    pick: Literal["members", "released"] = "members"
    epochs: Positive = 1
    pool: Natural = 0
    max_iterations: Positive = 50


class DistillParams(Strict):
    """One distillation, whole: what is matched, from where, against which images, for how long.

    DREAM and IDC differ in ``init`` and ``sampler`` alone. ``image_lr`` is multiplied by ipc/10 · (side/32)² when
    ``image_lr_rule`` is 'scaled' (side/28 for MNIST; IDC and DREAM), used as it is when 'fixed'. ``image_update`` says
    when pixels step: 'per_class', after every class on one shared momentum buffer (the released code); 'collapsed',
    once an iteration with the plain step that equals it; 'batched', once with momentum. ``cluster_features`` 'pooled'
    clusters features averaged over space; ``warm_start`` goes on from the last clustering's centres. ``learned_lr`` is
    the step size of whatever an objective learns besides pixels.
    """

    objective: str = "gradient"
    options: dict[str, Any] = {}
    init: str = "random"
    shrink: Literal["area", "nearest"] = "area"
    factor: Positive = 2
    decode: Literal["single", "bound"] = "single"
    sampler: str = "random"
    real_batch: Positive = 128
    per_cluster: Positive = 1
    interval: Positive = 10
    pool: Natural = 0
    cluster_iterations: Positive = 10
    cluster_start: Literal["random", "k-means++"] = "random"
    cluster_features: Literal["flat", "pooled"] = "flat"
    warm_start: bool = False
    synthetic_batch: Positive = 128
    outer_iterations: Natural = 2000
    inner_iterations: Positive = 100
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    image_lr: Rate = 5e-3
    image_lr_rule: Literal["fixed", "scaled", "normalised"] = "fixed"
    image_momentum: Momentum = 0.5
    image_update: Literal["per_class", "collapsed", "batched"] = "batched"
    learned_lr: Rate = 1e-5
    augmentation: str = "color_crop_cutout"
    augmentation_mode: Literal["idc", "dsa"] = "idc"
    train_on: Literal["real", "synthetic", "none"] = "real"
    network_steps: Natural = 4
    network_batch: Positive = 128
    network_lr: Rate = 0.01
    network_momentum: Momentum = 0.9
    network_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    network_augmentation: str = "flip_color_crop_cutout"
    cutmix: Fraction = 0.5
    pretrain_steps: Natural = 0
    labels: Literal["hard", "assigned"] = "hard"
    temperature: Rate = 1.0
    teacher_epochs: Positive = 20
    checkpoint_every_s: Rate = 30.0
    snapshots: Natural = 4

    @model_validator(mode="after")
    def _consistent(self) -> "DistillParams":
        if self.sampler == "representative" and self.real_batch % self.per_cluster:
            raise ValueError(f"per_cluster = {self.per_cluster} must divide real_batch = {self.real_batch}")
        if self.image_optimizer == "adam" and self.image_update != "batched":
            raise ValueError(f"image_update = {self.image_update} is defined for sgd only; use batched with adam")
        if self.sampler == "representative" and 0 < self.pool < self.real_batch:
            raise ValueError(
                f"pool = {self.pool} is smaller than real_batch = {self.real_batch}; raise it, or 0 for all"
            )
        return self


_SIAMESE = {"augmentation": "flip_color_crop_scale_rotate_cutout", "augmentation_mode": "dsa", "cutmix": 0.0}
# What each published evaluation sets apart from IDC's, whose values are the defaults of EvaluationParams.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "idc": {},
    "dc": {"epochs": 300, "batch": 256, "augmentation": "none", "cutmix": 0.0, "decay": "tenth"},
    "dsa": {"batch": 256, "decay": "tenth", **_SIAMESE},
    "dm": {"batch": 256, "decay": "tenth", **_SIAMESE},
    "mtt": {"batch": 256, "decay": "tenth", "learned_lr": True, **_SIAMESE},
}


class EvaluationParams(Strict):
    """The protocol that turns a set into an accuracy; the defaults are IDC's, ``protocol`` names another's.

    ``repeats`` fresh networks of each of ``networks`` are trained per set; none listed means the matched network, and
    the first listed is the one whose accuracy stands for the set. ``decay``: 'fifths' is × 0.2 at 2/3 and 5/6 of the
    epochs (IDC), 'tenth' × 0.1 after half of them (DC, DSA, DM, MTT), 'none' a constant rate. ``views`` asks the same
    set again: 'plain' without augmentation, 'hard_labels' without the soft labels it stores. ``curve_epochs`` is the
    shorter protocol behind accuracy-against-iterations curves, on the validation split.

    >>> EvaluationParams(protocol="dc").epochs, EvaluationParams(protocol="dc", epochs=30).epochs
    (300, 30)
    """

    protocol: str = "idc"
    networks: NetworkList = []
    repeats: Positive = 3
    views: list[Literal["plain", "hard_labels"]] = []
    decay: Literal["fifths", "tenth", "none"] = "fifths"
    epochs: Positive = 1000
    batch: Positive = 64
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    augmentation: str = "flip_color_crop_scale_rotate"
    augmentation_mode: Literal["idc", "dsa"] = "idc"
    cutmix: Fraction = 0.5
    learned_lr: bool = False
    curve_networks: Natural = 1
    curve_epochs: Positive = 100

    @model_validator(mode="before")
    @classmethod
    def _with_protocol(cls, values: Any) -> Any:
        name = values.get("protocol", "idc")
        if not isinstance(name, str) or name not in PROTOCOLS:
            raise ValueError(str(unknown("evaluation protocol", name, sorted(PROTOCOLS))))
        return {**PROTOCOLS[name], **values}


class ExpertParams(Strict):
    """The trajectories MTT follows; the defaults are its own. See ``dreamlib.experts.ExpertSettings``.

    ``images`` bounds the training images a class that the experts see (0: all).
    """

    images: Natural = 0
    count: Positive = 100
    epochs: Positive = 50
    batch: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augmentation: str = "flip_color_crop_scale_rotate_cutout"
    mode: Literal["idc", "dsa"] = "dsa"


class BudgetSections(Strict):
    """What a budget, or its block for a data set, may set; the keys inside are checked where they are used."""

    clustering: dict[str, Any] = {}
    distillation: dict[str, Any] = {}
    experts: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Budget(BudgetSections):
    """A named budget: how much work each stage does, and overrides for single data sets."""

    by_dataset: dict[str, BudgetSections] = {}


class Params(Strict):
    """All of params.yaml."""

    dataset: str
    ipc: Annotated[list[Positive], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Natural], Field(min_length=1)]
    budget: str
    compute: ComputeParams = ComputeParams()
    data: DataParams = DataParams()
    network: NetworkParams = NetworkParams()
    method: dict[str, dict[str, Any]]
    budgets: dict[str, Budget]

    def distillation(self, method: str, ipc: int) -> DistillParams:
        """What ``method`` does at ``ipc`` under the chosen budget.

        Later layers win: the budget's ``distillation``, its block for the data set, the method's own block, the
        method's block named after the budget. A value given as a mapping from ipc to value means: the entry of
        the largest ipc not above this one.
        """
        block = self._of(self.method, "method", method)
        own = {k: v for k, v in block.items() if k not in self.budgets}
        special = block.get(self.budget) or {}
        if not isinstance(special, Mapping):
            raise ParameterError(
                f"params.yaml: method.{method}.{self.budget} must hold keys and values, got {special!r}"
            )
        layers = [*self._budget_layers("distillation"), own, special]
        return _build(DistillParams, layers, ipc, f"method {method}, budget {self.budget}")

    def clustering(self) -> ClusteringParams:
        """The clustering stage's parameters under the chosen budget."""
        return _build(ClusteringParams, self._budget_layers("clustering"), 1, f"clustering, budget {self.budget}")

    def experts(self) -> ExpertParams:
        """The expert trajectories under the chosen budget."""
        return _build(ExpertParams, self._budget_layers("experts"), 1, f"experts, budget {self.budget}")

    def evaluation(self, ipc: int) -> EvaluationParams:
        """The evaluation protocol at ``ipc`` under the chosen budget."""
        return _build(EvaluationParams, self._budget_layers("evaluation"), ipc, f"evaluation, budget {self.budget}")

    def _budget_layers(self, section: str) -> list[dict[str, Any]]:
        budget = self._of(self.budgets, "budget", self.budget)
        special = budget.by_dataset.get(self.dataset, BudgetSections())
        return [getattr(budget, section), getattr(special, section)]

    @staticmethod
    def _of(table: Mapping[str, Any], kind: str, name: str) -> Any:
        if name not in table:
            raise ParameterError(str(unknown(kind, name, sorted(table))))
        return table[name]


_BY_IPC_EXEMPT = {"options"}


def _build(model: type[Any], layers: list[dict[str, Any]], ipc: int, where: str) -> Any:
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.get("objective", merged.get("objective")) != merged.get("objective"):
            merged.pop("options", None)  # they are another objective's
        for key, value in layer.items():
            if key in _BY_IPC_EXEMPT and isinstance(value, Mapping):
                value = {**merged.get(key, {}), **value}
            merged[key] = value
    merged = {key: _at_ipc(key, value, ipc, where) for key, value in merged.items()}
    return _validated(model, merged, where)


def _at_ipc(key: str, value: Any, ipc: int, where: str) -> Any:
    if key in _BY_IPC_EXEMPT:
        if not isinstance(value, Mapping):
            raise ParameterError(f"params.yaml ({where}): {key} must hold keys and values, such as {{}}; got {value!r}")
        return {k: _at_ipc(f"options.{k}", v, ipc, where) for k, v in value.items()}
    if not isinstance(value, Mapping):
        return value
    if not value or not all(isinstance(k, int) for k in value):
        raise ParameterError(
            f"params.yaml ({where}): {key} may be a value or a mapping from ipc to value; got {dict(value)}"
        )
    if min(value) > ipc:
        raise ParameterError(f"params.yaml ({where}): {key} says nothing for ipc {ipc}; add an entry '{ipc}:' or lower")
    return value[max(k for k in value if k <= ipc)]


def _validated(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors()]
        raise ParameterError(f"params.yaml ({where}): " + "; ".join(lines)) from None


def _explain(problem: Any, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: Any = model
        for part in problem["loc"][:-1]:
            if get_origin(section) in (dict, list):  # the part is a key of the table or a place in the list
                section = get_args(section)[-1]
                section = get_args(section)[0] if get_origin(section) is Annotated else section
            else:
                field = getattr(section, "model_fields", {}).get(part)
                section = field.annotation if field else None
        known = sorted(getattr(section, "model_fields", {}))
        return str(unknown("key", problem["loc"][-1], known)) + (f" (at {path})" if len(problem["loc"]) > 1 else "")
    # Without a path the problem is one between values, and its message names them.
    shown = "" if problem["type"] == "missing" or not path else f", got {problem['input']!r}"
    return f"{path or 'section'}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def find_root(start: str | Path | None = None) -> Path:
    """The project: the nearest folder with a dvc.yaml, at or above the current directory.

    Not ``__file__``: `dvc exp run --queue` runs in a copy of the project. Raises FileNotFoundError outside one.
    """
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no dvc.yaml at or above {here}; run from inside the project")


def read_params(root: str | Path | None = None, study: str | None = None) -> Params:
    """params.yaml of the project, validated; with ``study``, as that section of studies.yaml overrides it.

    A study's sections join those of params.yaml key by key, its other values replace them. Raises ParameterError with
    one message for everything that is wrong.
    """
    root = Path(root or find_root())
    values = _read_yaml(root / "params.yaml")
    if study:
        studies = _read_yaml(root / "studies.yaml").get("studies")
        if not isinstance(studies, dict):
            raise ParameterError(f"studies.yaml: studies must hold studies by name, got {studies!r}")
        if study not in studies:
            raise ParameterError(str(unknown("study", study, sorted(studies))))
        if not isinstance(studies[study], dict):
            raise ParameterError(f"studies.yaml: study {study} must hold sections, got {studies[study]!r}")
        values = _joined(values, studies[study])
    params = _validated(Params, values, f"study {study}" if study else "top level")
    check(params)
    return params


def _joined(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of sections as one; where both have a value, the one above."""
    both = {k: _joined(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def _read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of sections; raises ParameterError when it is missing or is not one."""
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise ParameterError(f"{path} is missing; restore it with `git checkout {path.name}`") from None
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "cannot be read"
        line = f", line {mark.line + 1}" if mark else ""
        raise ParameterError(f"{path} is not valid YAML{line}: {' '.join(str(problem).split())}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path} must hold sections, got {type(values).__name__}")
    return values


def check(params: Params) -> None:
    """Resolve every setting the pipeline would run, so that a mistake shows before any stage starts."""
    for name in params.method:
        if name in params.budgets:
            raise ParameterError(f"'{name}' names both a method and a budget; rename one")
    for method in params.methods:
        for ipc in params.ipc:
            _check_workers(params.compute, params.distillation(method, ipc), method)
            params.evaluation(ipc)
    params.clustering()
    params.experts()
    for key in ("ipc", "methods", "seeds"):
        values = getattr(params, key)
        if len(set(values)) != len(values):
            raise ParameterError(f"params.yaml: {key} lists a value twice: {values}; DVC would run it twice")


def _check_workers(compute: ComputeParams, how: DistillParams, method: str) -> None:
    if compute.workers == 1:
        return
    if how.image_update == "per_class" and how.outer_iterations:
        raise ParameterError(
            f"params.yaml: compute.workers = {compute.workers}, but method {method} has image_update: per_class, which "
            "takes the classes in turn; use batched or collapsed, or workers: 1"
        )
    if compute.device not in ("auto", "cpu", "cuda"):
        raise ParameterError(
            f"params.yaml: compute.workers = {compute.workers}, but compute.device {compute.device} names one device; "
            "use auto, cuda or cpu, or workers: 1"
        )


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-able or pydantic values, for file names and provenance.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
