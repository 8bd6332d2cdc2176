"""Read params.yaml, methods.yaml and the studies' parameters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from dreamlib._engine.files import find_above
from dreamlib.errors import ParameterError, unknown
from dreamlib.settings import DistillParams, NetworkParams
from pipeline.params.errors import SettingError, check_keys, located, validated
from pipeline.params.models import OF_A_METHOD, OVERRIDES, SECTIONS, Params
from pipeline.params.studies import ClaimsParams, StudiesFile

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


def read_params(
    root: str | Path | None = None, study: str | None = None, more: Callable[[Params], None] = lambda params: None
) -> Params:
    """Return the project's parameters, validated: methods.yaml, params.yaml over it, and over both a ``study``.

    A study is a section of studies/params.yaml. Its sections join those of params.yaml key by key, its other values
    replace them, and its network is that of its budget; options of another data set are left out. ``more`` is a further
    check. Raise ParameterError with one line that names file, keys, value and remedy.
    """
    root = Path(root or find_root())
    methods, params_yaml = read_yaml(root / METHODS), read_yaml(root / "params.yaml")
    files, values, moved = {f"{METHODS}: ": methods, "params.yaml: ": params_yaml}, _joined(methods, params_yaml), {}
    if study:
        studies = read_studies(root).studies
        if study not in studies:
            raise ParameterError(str(unknown("study", study, sorted(studies))))
        files[f"{STUDIES}: studies.{study}."] = studies[study]
        values = _joined(_outside(values, studies[study]), studies[study])
        if "network" in studies[study]:
            network, moved = values.pop("network"), {("budgets", values.get("budget"), "network"): ("network",)}
    with located(files, moved):
        params = validated(Params, values)
        if moved:
            params = params.with_network(validated(NetworkParams, network, lambda keys: ("network", *keys)))
        _check_keys(params)
        _check_values(params)
        more(params)
    return params


def read_studies(root: Path) -> StudiesFile:
    """Return studies/params.yaml, of whose studies only the names are validated; raise as ``read_params`` does."""
    tree = read_yaml(root / STUDIES)
    with located({f"{STUDIES}: ": tree}):
        return validated(StudiesFile, tree)


def read_claims(root: str | Path | None = None) -> ClaimsParams:
    """Return the section ``claims`` of studies/params.yaml, validated; raise ParameterError as ``read_params`` does."""
    claims = read_studies(Path(root or find_root())).claims
    if claims is None:
        raise ParameterError(f"{STUDIES} has no section claims; restore it with `git checkout {STUDIES}`")
    return claims


def _outside(values: dict[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """What of params.yaml holds in a study too: not the options of another data set."""
    kept = dict(values)
    if study.get("dataset", values.get("dataset")) != values.get("dataset") and isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "options"}
    return kept


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of sections as one; where both have a value, the one above."""
    both = {k: _joined(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file of sections; raise ParameterError when it is missing or is not one."""
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


def _check_keys(params: Params) -> None:
    """Refuse keys that mean nothing, in force or not; raise SettingError with the nearest that does."""
    of_methods = {*DistillParams.model_fields, *OF_A_METHOD, *OVERRIDES}
    for name in {*params.method, *of_methods} & {*params.budgets}:
        kind = "a method" if name in params.method else "a key of methods"
        raise SettingError((("budgets", name), f"'{name}' names both {kind} and a budget; rename one"))
    for kind, (keys, values) in params.every_section():
        has_method_keys = keys[0] == "method" and keys[-1] != kind
        check_keys(values, {*of_methods, *params.budgets} if has_method_keys else SECTIONS[kind].model_fields, keys)


def _check_values(params: Params) -> None:
    """Resolve every setting the pipeline would run, so that a mistake shows before any stage starts."""
    for ipc in params.ipc:
        for method in params.methods:
            params.distillation(method, ipc)
            params.evaluation(method, ipc)
        for key in ("factor", "real_batch"):  # the clustering stage's
            params.value(key, ipc)
    for method in (None, *params.methods):
        params.clustering(method)
    params.experts()
