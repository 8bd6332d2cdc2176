"""Read params.yaml, methods.yaml and the studies' parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from dreamlib._engine.files import find_above
from dreamlib.errors import ParameterError, unknown
from pipeline.params.layers import validated
from pipeline.params.models import ClaimsParams, Params

METHODS = "methods.yaml"
STUDIES = "studies/params.yaml"


def find_root(start: str | Path | None = None) -> Path:
    """Return the project's root: the nearest folder with a methods.yaml, at or above the current directory.

    The place of this file does not count, since `dvc exp run --queue` runs in a copy of the project. Raise
    FileNotFoundError outside a project.
    """
    methods = find_above(METHODS, start)
    if methods is None:
        raise FileNotFoundError(f"no {METHODS} at or above {start or Path.cwd()}; run from inside the project")
    return methods.parent


def read_params(root: str | Path | None = None, study: str | None = None) -> Params:
    """Return the project's parameters, validated: methods.yaml, params.yaml over it, and over both a ``study``.

    A study is a section of studies/params.yaml. Its sections join those of params.yaml key by key, its other values
    replace them, and its network is that of its budget; options of another data set are left out. Raise ParameterError
    with one message for everything that is wrong.
    """
    root = Path(root or find_root())
    values = _joined(_read_yaml(root / METHODS), _read_yaml(root / "params.yaml"))
    if study:
        studies = _read_yaml(root / STUDIES).get("studies")
        if not isinstance(studies, dict) or not studies:
            raise ParameterError(f"{STUDIES}: studies must hold studies by name, got {studies!r}")
        if study not in studies:
            raise ParameterError(str(unknown("study", study, sorted(studies))))
        if not isinstance(studies[study], dict):
            raise ParameterError(f"{STUDIES}: study {study} must hold sections, got {studies[study]!r}")
        values = _joined(_outside(values, studies[study]), studies[study])
        if "network" in values and values.get("budget") in values["budgets"]:
            values["budgets"][values["budget"]]["network"] = values.pop("network")
    params = validated(Params, values, f"study {study}" if study else "top level")
    check(params)
    return params


def read_claims(root: str | Path | None = None) -> ClaimsParams:
    """Return the section ``claims`` of studies/params.yaml, validated; raise ParameterError as ``read_params`` does."""
    root = Path(root or find_root())
    return validated(ClaimsParams, _read_yaml(root / STUDIES).get("claims") or {}, f"claims of {STUDIES}")


def _outside(values: dict[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """What of params.yaml holds in a study too: not the options of another data set."""
    kept = dict(values)
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
            params.distillation(method, ipc)
            params.evaluation(method, ipc)
        params.clustering(method)
    params.clustering()
    params.experts()
    for key in ("ipc", "methods", "seeds"):
        values = getattr(params, key)
        if len(set(values)) != len(values):
            raise ParameterError(f"params.yaml: {key} lists a value twice: {values}; DVC would run it twice")
