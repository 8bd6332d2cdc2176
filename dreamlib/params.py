"""params.yaml, validated once at the door: every knob typed, ranged and explained, every error with its remedy."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from dreamlib.registry import unknown
from dreamlib.sections import (
    OF_EVERY_PROTOCOL,
    PROTOCOLS,
    RELEASED_CLUSTERING,
    BatchesParams,
    Budget,
    ClaimsParams,
    ClusteringParams,
    ComputeParams,
    CostParams,
    DataParams,
    DatasetSections,
    DistillParams,
    EvaluationParams,
    ExpertParams,
    Natural,
    NetworkParams,
    Positive,
    Strict,
)

# The sections are part of what this module offers: one door for whoever needs a parameter.
__all__ = [
    "PROTOCOLS",
    "BatchesParams",
    "ClaimsParams",
    "ClusteringParams",
    "ComputeParams",
    "CostParams",
    "DataParams",
    "DistillParams",
    "EvaluationParams",
    "ExpertParams",
    "NetworkParams",
    "ParameterError",
    "Params",
    "check",
    "digest",
    "find_root",
    "read_params",
]


class ParameterError(ValueError):
    """params.yaml (or a stage's coordinate) asks for something that cannot be done; the message says what can."""


class Params(Strict):
    """All of params.yaml."""

    dataset: str
    ipc: Annotated[list[Positive], Field(min_length=1)]
    methods: Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]], Field(min_length=1)]  # in file names
    seeds: Annotated[list[Natural], Field(min_length=1)]
    budget: str
    compute: ComputeParams = ComputeParams()
    data: DataParams = DataParams()
    network: NetworkParams = NetworkParams()
    method: dict[str, dict[str, Any]]
    budgets: dict[str, Budget]

    def distillation(self, method: str, ipc: int) -> DistillParams:
        """Return what ``method`` does at ``ipc`` under the chosen budget.

        Later layers win: the budget's ``distillation``, the budget's block for the data set, the method's own keys, the
        method's block named after the budget. Within a block, entries under ``by_factor`` and ``by_dataset`` follow its
        own keys. A value given as a mapping from ipc to value means: the entry of the largest ipc not above this one.
        """
        where = f"method {method}, budget {self.budget}"
        first = _merged(self._layers("distillation", method))
        factor = _at_ipc("factor", first.get("factor", DistillParams.model_fields["factor"].default), ipc, where)
        how = _build(DistillParams, self._layers("distillation", method, factor), ipc, where)
        return how if how.init != "released" else how.model_copy(update={"shrink": "nearest"})

    def evaluation(self, method: str, ipc: int) -> EvaluationParams:
        """Return the protocol that ``method`` is evaluated by at ``ipc``; layers as in ``distillation``."""
        factor = self.distillation(method, ipc).factor
        where = f"evaluation of {method}, budget {self.budget}"
        return _build(EvaluationParams, self._layers("evaluation", method, factor), ipc, where)

    def clustering(self, method: str | None = None) -> ClusteringParams:
        """Return how the clustering stage works, for all methods or for one that sets ``clustering`` of its own."""
        where = f"clustering{f' of {method}' if method else ''}, budget {self.budget}"
        how = _build(ClusteringParams, self._layers("clustering", method), None, where)
        init = _merged(self._layers("distillation", method)).get("init") if method else None
        if isinstance(init, Mapping):
            raise ParameterError(f"params.yaml ({where}): init is one for every ipc; give one value, not {dict(init)}")
        released = init == "released"
        return RELEASED_CLUSTERING if released else how

    def experts(self) -> ExpertParams:
        """Return the expert trajectories under the chosen budget."""
        return _build(ExpertParams, self._layers("experts"), None, f"experts, budget {self.budget}")

    @property
    def validation_per_class(self) -> int:
        """Training images of each class held out under the chosen budget and data set; 0 for none."""
        budget = self._of(self.budgets, "budget", self.budget)
        special = budget.by_dataset.get(self.dataset, DatasetSections()).validation_per_class
        return (budget.validation_per_class or 0) if special is None else special

    def _layers(self, section: str, method: str | None = None, factor: int | None = None) -> list[dict[str, Any]]:
        """The layers of one section, those that win last."""
        budget = self._of(self.budgets, "budget", self.budget)
        layers = list(self._budget_layers(budget, section, factor))
        if method:
            layers += self._method_layers(self._of(self.method, "method", method), section, factor, f"method.{method}")
        return layers

    def _budget_layers(self, budget: Budget, section: str, factor: int | None) -> Iterator[dict[str, Any]]:
        special = budget.by_dataset.get(self.dataset, DatasetSections())
        for block in (budget, special, _not_above(special.by_factor, factor)):
            if block is not None:
                yield getattr(block, section)

    def _method_layers(self, block: Any, section: str, factor: int | None, path: str) -> Iterator[dict[str, Any]]:
        """The layers a method's block has for a section: its keys are those of ``distillation``, but for sections."""
        block = _mapping(block, path)
        nested = {"clustering", "evaluation", "by_factor", "by_dataset", *self.budgets}
        if section == "distillation":
            yield {key: value for key, value in block.items() if key not in nested}
        elif section in block:
            yield dict(_mapping(block[section], f"{path}.{section}"))
        by_factor = _mapping(block.get("by_factor", {}), f"{path}.by_factor")
        if not all(isinstance(key, int) for key in by_factor):
            raise ParameterError(
                f"params.yaml: {path}.by_factor must map whole numbers to sections, got {dict(by_factor)}"
            )
        if (chosen := _not_above(by_factor, factor)) is not None:
            yield from self._method_layers(chosen, section, factor, f"{path}.by_factor")
        by_dataset = _mapping(block.get("by_dataset", {}), f"{path}.by_dataset")
        for key, under in ((self.dataset, by_dataset), (self.budget, block)):
            if key in under:
                yield from self._method_layers(under[key] or {}, section, factor, f"{path}.{key}")

    @staticmethod
    def _of(table: Mapping[str, Any], kind: str, name: str) -> Any:
        if name not in table:
            raise ParameterError(str(unknown(kind, name, sorted(table))))
        return table[name]


_BY_IPC_EXEMPT = {"options"}
_ONE_MAY_HAVE_KEYS = {"networks"}  # a network is written by its name and options, and one needs no list


def _not_above(table: Mapping[int, Any], factor: int | None) -> Any:
    """The entry of the largest key not above ``factor``; None where there is none."""
    keys = [key for key in table if factor is not None and key <= factor]
    return table[max(keys)] if keys else None


def _mapping(value: Any, path: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ParameterError(f"params.yaml: {path} must hold keys and values, got {value!r}")
    return value


def _merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One section of several layers, the last of which win.

    Options join key by key, for as long as the objective is the same. A layer that names another protocol begins with
    that protocol's values.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.get("protocol", merged.get("protocol", "idc")) != merged.get("protocol", "idc"):
            merged = {key: value for key, value in merged.items() if key in OF_EVERY_PROTOCOL}
        if layer.get("objective", merged.get("objective")) != merged.get("objective"):
            merged.pop("options", None)  # they are another objective's
        for key, value in layer.items():
            if key in _BY_IPC_EXEMPT and isinstance(value, Mapping):
                value = {**merged.get(key, {}), **value}
            merged[key] = value
    return merged


def _build(model: type[Any], layers: Iterable[Mapping[str, Any]], ipc: int | None, where: str) -> Any:
    merged = {key: _at_ipc(key, value, ipc, where) for key, value in _merged(layers).items()}
    return _validated(model, merged, where)


def _at_ipc(key: str, value: Any, ipc: int | None, where: str) -> Any:
    """A section's value at ``ipc``; None for a section that is one for all of them."""
    if key in _BY_IPC_EXEMPT:
        if not isinstance(value, Mapping):
            raise ParameterError(f"params.yaml ({where}): {key} must hold keys and values, such as {{}}; got {value!r}")
        return {k: _at_ipc(f"options.{k}", v, ipc, where) for k, v in value.items()}
    if not isinstance(value, Mapping):
        return value
    if key in _ONE_MAY_HAVE_KEYS and value and not any(isinstance(k, int) for k in value):
        return value
    if not value or not all(isinstance(k, int) for k in value):
        raise ParameterError(
            f"params.yaml ({where}): {key} may be a value or a mapping from ipc to value; got {dict(value)}"
        )
    if ipc is None:
        raise ParameterError(f"params.yaml ({where}): {key} is one for every ipc; give one value, not {dict(value)}")
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
    return f"{path + ': ' if path else ''}{problem['msg'].removeprefix('Value error, ')}{shown}"


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

    A study's sections join those of params.yaml key by key, its other values replace them; so does its network, and
    options of another data set are left out. Raises ParameterError with one message for everything that is wrong.
    """
    root = Path(root or find_root())
    values = _read_yaml(root / "params.yaml")
    if study:
        studies = _read_yaml(root / "studies.yaml").get("studies")
        if not isinstance(studies, dict) or not studies:
            raise ParameterError(f"studies.yaml: studies must hold studies by name, got {studies!r}")
        if study not in studies:
            raise ParameterError(str(unknown("study", study, sorted(studies))))
        if not isinstance(studies[study], dict):
            raise ParameterError(f"studies.yaml: study {study} must hold sections, got {studies[study]!r}")
        values = _joined(_outside(values, studies[study]), studies[study])
    params = _validated(Params, values, f"study {study}" if study else "top level")
    check(params)
    return params


def read_claims(root: str | Path | None = None) -> ClaimsParams:
    """The section ``claims`` of studies.yaml, validated; raises ParameterError as ``read_params`` does."""
    root = Path(root or find_root())
    return _validated(ClaimsParams, _read_yaml(root / "studies.yaml").get("claims") or {}, "claims of studies.yaml")


def _outside(values: dict[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """What of params.yaml holds in a study too: not the options of another network or data set."""
    kept = {key: value for key, value in values.items() if key != "network" or key not in study}
    if study.get("dataset", values.get("dataset")) != values.get("dataset") and isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "options"}
    return kept


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
            params.evaluation(method, ipc)
        params.clustering(method)
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
