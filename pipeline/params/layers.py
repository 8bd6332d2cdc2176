"""How the layers of a setting join: budget → data set → method → by ipc, the last one wins."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dreamlib.settings import OF_EVERY_PROTOCOL
from pipeline.params.errors import Keys, SettingError, mapping, validated

_BY_IPC_EXEMPT = {"options"}
_ONE_MAY_HAVE_KEYS = {"networks"}  # a network is written by its name and options, and one needs no list

Layer = tuple[Keys, Mapping[str, Any]]  # where a section stands, and what it holds


def not_above(table: Mapping[int, Any], factor: int | None) -> list[int]:
    """Return the largest key not above ``factor``, or nothing."""
    return sorted(key for key in table if isinstance(factor, int) and key <= factor)[-1:]


def merged(layers: Iterable[Layer]) -> dict[str, Any]:
    """One section of several layers, the last of which win.

    Options join key by key, for as long as the objective is the same. A layer that names another protocol begins with
    that protocol's values.
    """
    values: dict[str, Any] = {}
    for keys, layer in layers:
        if layer.get("protocol", values.get("protocol", "idc")) != values.get("protocol", "idc"):
            values = {key: value for key, value in values.items() if key in OF_EVERY_PROTOCOL}
        if layer.get("objective", values.get("objective")) != values.get("objective"):
            values.pop("options", None)  # they are another objective's
        for key, value in layer.items():
            if key in _BY_IPC_EXEMPT:
                value = {**values.get(key, {}), **mapping(value, (*keys, key))}
            values[key] = value
    return values


def build(model: type[Any], layers: Sequence[Layer], ipc: int | None, where: str) -> Any:
    """Return the settings ``model`` of joined layers at ``ipc``.

    Raise SettingError for values that cannot be used; ``where`` names the settings in the message on a combination.
    """
    values = {key: at_ipc(value, ipc, origin(layers, key)) for key, value in merged(layers).items()}
    return validated(model, values, lambda keys: (*origin(layers, keys[0]), *keys[1:]), where)


def origin(layers: Sequence[Layer], key: str | int) -> Keys:
    """Return where the value of a key stands: in the last layer that has it."""
    return next(((*keys, key) for keys, values in reversed(layers) if key in values), (key,))


def at_ipc(value: Any, ipc: int | None, keys: Keys) -> Any:
    """Return the value at ``keys`` for ``ipc``; ``ipc`` None stands for a section with one value for every ipc."""
    if not isinstance(value, Mapping):
        return value
    if keys[-1] in _BY_IPC_EXEMPT:
        return {name: at_ipc(option, ipc, (*keys, name)) for name, option in value.items()}
    if keys[-1] in _ONE_MAY_HAVE_KEYS and value and not any(isinstance(k, int) for k in value):
        return value
    if not value or not all(isinstance(k, int) for k in value):
        problem = "give a value, or a mapping from ipc to value"
    elif ipc is None:
        problem = "give one value, which holds for every ipc"
    elif min(value) > ipc:
        problem = f"no value for ipc {ipc}: add an entry '{ipc}:' or lower"
    else:
        return value[max(k for k in value if k <= ipc)]
    raise SettingError((keys, f"{problem}, got {reprlib.repr(dict(value))}"))


def borrowed(values: Mapping[str, Any], ipc: int, path: str = "") -> dict[str, int]:
    """Return which values of joined layers are the entry of another ipc: key, or options.key → that ipc.

    >>> borrowed({"image_lr": {1: 0.1, 10: 0.3}, "options": {"steps": {1: 20}, "batch": 8}}, 5)
    {'image_lr': 1, 'options.steps': 1}
    """
    entries = {}
    for key, value in values.items():
        if key in _BY_IPC_EXEMPT and isinstance(value, Mapping):
            entries |= borrowed(value, ipc, f"{path}{key}.")
        elif isinstance(value, Mapping) and ipc not in value and value and all(isinstance(k, int) for k in value):
            entries[path + key] = max(k for k in value if k <= ipc)
    return entries
