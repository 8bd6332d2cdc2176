"""How the layers of a setting join: budget → data set → method → by ipc, the last one wins."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dreamlib.errors import ParameterError, unknown
from dreamlib.settings import OF_EVERY_PROTOCOL

_BY_IPC_EXEMPT = {"options"}
_ONE_MAY_HAVE_KEYS = {"networks"}  # a network is written by its name and options, and one needs no list


def not_above(table: Mapping[int, Any], factor: int | None) -> Any:
    """The entry of the largest key not above ``factor``; None where there is none."""
    keys = [key for key in table if factor is not None and key <= factor]
    return table[max(keys)] if keys else None


def mapping(value: Any, path: str) -> Mapping[Any, Any]:
    """Return ``value`` if it holds keys and values; raise ParameterError naming ``path`` otherwise."""
    if not isinstance(value, Mapping):
        raise ParameterError(f"params.yaml: {path} must hold keys and values, got {value!r}")
    return value


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One section of several layers, the last of which win.

    Options join key by key, for as long as the objective is the same. A layer that names another protocol begins with
    that protocol's values.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if layer.get("protocol", values.get("protocol", "idc")) != values.get("protocol", "idc"):
            values = {key: value for key, value in values.items() if key in OF_EVERY_PROTOCOL}
        if layer.get("objective", values.get("objective")) != values.get("objective"):
            values.pop("options", None)  # they are another objective's
        for key, value in layer.items():
            if key in _BY_IPC_EXEMPT and isinstance(value, Mapping):
                value = {**values.get(key, {}), **value}
            values[key] = value
    return values


def build(model: type[Any], layers: Iterable[Mapping[str, Any]], ipc: int | None, where: str) -> Any:
    """Return the settings ``model`` of joined layers at ``ipc``; raise ParameterError naming ``where``."""
    values = {key: at_ipc(key, value, ipc, where) for key, value in merged(layers).items()}
    return validated(model, values, where)


def at_ipc(key: str, value: Any, ipc: int | None, where: str) -> Any:
    """Return a section's value at ``ipc``; ``ipc`` None stands for a section with one value for every ipc."""
    if key in _BY_IPC_EXEMPT:
        if not isinstance(value, Mapping):
            raise ParameterError(f"params.yaml ({where}): {key} must hold keys and values, such as {{}}; got {value!r}")
        return {k: at_ipc(f"options.{k}", v, ipc, where) for k, v in value.items()}
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


def borrowed(values: Mapping[str, Any], ipc: int, path: str = "") -> dict[str, int]:
    """Return which values of joined layers are the entry of another ipc: key, or options.key → that ipc.

    >>> borrowed({"image_lr": {1: 0.1, 10: 0.3}, "options": {"steps": {1: 20}, "batch": 8}}, 5)
    {'image_lr': 1, 'options.steps': 1}
    """
    found = {}
    for key, value in values.items():
        if key in _BY_IPC_EXEMPT and isinstance(value, Mapping):
            found |= borrowed(value, ipc, f"{path}{key}.")
        elif isinstance(value, Mapping) and ipc not in value and value and all(isinstance(k, int) for k in value):
            found[path + key] = max(k for k in value if k <= ipc)
    return found


def validated(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Return ``values`` as a ``model``; raise ParameterError with one line for everything that is wrong."""
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
