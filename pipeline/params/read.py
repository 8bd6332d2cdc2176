"""Read params.yaml, methods.yaml and the studies' parameters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from dreamlib._engine.files import find_above
from dreamlib.errors import ParameterError, unknown
from dreamlib.settings import DistillParams, NetworkParams
from pipeline.params.errors import SettingError, check_keys, located, validated
from pipeline.params.models import METHOD_SECTIONS, OVERRIDES, SECTIONS, Params
from pipeline.params.studies import ClaimsParams, StudiesFile

METHODS = "methods.yaml"
STUDIES = "studies/params.yaml"


def find_root(start: str | Path | None = None) -> Path:
    """Return the project's root: the nearest folder with a methods.yaml, at or above the current directory.

    The location of this file is irrelevant, since `dvc exp run --queue` runs in a copy of the project. Raise
    FileNotFoundError outside a project.
    """
    methods = find_above(METHODS, start)
    if methods is None:
        raise FileNotFoundError(f"no {METHODS} at or above {start or Path.cwd()}; run from inside the project")
    return methods.parent


def read_params(
    root: str | Path | None = None,
    study: str | None = None,
    extra_check: Callable[[Params], None] = lambda params: None,
) -> Params:
    """Return the project's validated parameters: methods.yaml, overridden by params.yaml and then by ``study``.

    A study is a section of studies/params.yaml. Its sections are merged key by key with those of params.yaml; its other
    values replace theirs, and its network replaces the budget's; options of another data set are left out.
    ``extra_check`` is a further check. Raise ParameterError with one line that names file, keys, value and remedy.
    """
    root = Path(root or find_root())
    methods, params_yaml = read_yaml(root / METHODS), read_yaml(root / "params.yaml")
    files, values, moved = {f"{METHODS}: ": methods, "params.yaml: ": params_yaml}, _merged(methods, params_yaml), {}
    if study:
        studies = read_studies(root).studies
        if study not in studies:
            raise ParameterError(str(unknown("study", study, sorted(studies))))
        files[f"{STUDIES}: studies.{study}."] = studies[study]
        values = _merged(_params_for_study(values, studies[study]), studies[study])
        if "network" in studies[study]:
            network, moved = values.pop("network"), {("budgets", values.get("budget"), "network"): ("network",)}
    with located(files, moved):
        params = validated(Params, values)
        if moved:
            params = params.with_network(validated(NetworkParams, network, lambda keys: ("network", *keys)))
        _check_keys(params)
        _check_values(params)
        extra_check(params)
    return params


def read_studies(root: Path) -> StudiesFile:
    """Return studies/params.yaml, validating only the names of its studies; raise as ``read_params`` does."""
    tree = read_yaml(root / STUDIES)
    with located({f"{STUDIES}: ": tree}):
        return validated(StudiesFile, tree)


def read_claims(root: str | Path | None = None) -> ClaimsParams:
    """Return the section ``claims`` of studies/params.yaml, validated; raise ParameterError as ``read_params`` does."""
    claims = read_studies(Path(root or find_root())).claims
    if claims is None:
        raise ParameterError(f"{STUDIES} has no section claims; restore it with `git checkout {STUDIES}`")
    return claims


def _params_for_study(values: dict[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of params.yaml that apply to a study too: all but the options of another data set."""
    values = dict(values)
    if study.get("dataset", values.get("dataset")) != values.get("dataset") and isinstance(values.get("data"), dict):
        values["data"] = {key: value for key, value in values["data"].items() if key != "options"}
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two trees of sections merged; if both have a value, that of ``above``."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file of sections; raise ParameterError if it is missing or holds anything else."""
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
    """Reject unknown keys, whether used or not; raise SettingError that suggests the nearest known key."""
    of_methods = {*DistillParams.model_fields, *METHOD_SECTIONS, *OVERRIDES}
    for name in {*params.method, *of_methods} & {*params.budgets}:
        kind = "a method" if name in params.method else "a key of methods"
        raise SettingError((("budgets", name), f"'{name}' names both {kind} and a budget; rename one"))
    for kind, (keys, values) in params.every_section():
        has_method_keys = keys[0] == "method" and keys[-1] != kind
        check_keys(values, {*of_methods, *params.budgets} if has_method_keys else SECTIONS[kind].model_fields, keys)


def _check_values(params: Params) -> None:
    """Resolve every setting the pipeline would run, so that errors appear before any stage starts."""
    for ipc in params.ipc:
        for method in params.methods:
            params.distillation(method, ipc)
            params.evaluation(method, ipc)
        for key in ("factor", "real_batch"):  # the clustering stage's
            params.value(key, ipc)
    for method in (None, *params.methods):
        params.clustering(method)
    params.experts()
