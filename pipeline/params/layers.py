"""Merge the layers of a setting: budget → data set → method → by ipc, the last one wins."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dreamlib.settings import PROTOCOL_INDEPENDENT
from pipeline.params.errors import KeyPath, SettingError, mapping, validated

_MERGED_KEYS = {"options"}  # mappings that layers merge key by key; their values may again depend on ipc
_MAPPING_VALUED = {"networks"}  # a single network may be given as a mapping, without a list

Layer = tuple[KeyPath, Mapping[str, Any]]  # the keys that lead to a section, and its content


def applicable_factor(table: Mapping[int, Any], factor: int | None) -> list[int]:
    """Return the largest key not above ``factor``, in a list; empty if none."""
    return sorted(key for key in table if isinstance(factor, int) and key <= factor)[-1:]


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Return one section merged from several layers; later layers win.

    Options are merged key by key unless the objective changes. A layer with another protocol resets the protocol's
    values.
    """
    values: dict[str, Any] = {}
    for keys, layer in layers:
        if layer.get("protocol", values.get("protocol", "idc")) != values.get("protocol", "idc"):
            values = {key: value for key, value in values.items() if key in PROTOCOL_INDEPENDENT}
        if layer.get("objective", values.get("objective")) != values.get("objective"):
            values.pop("options", None)  # they belong to another objective
        for key, value in layer.items():
            if key in _MERGED_KEYS:
                value = {**values.get(key, {}), **mapping(value, (*keys, key))}
            values[key] = value
    return values


def build(model: type[Any], layers: Sequence[Layer], ipc: int | None, where: str) -> Any:
    """Return the settings ``model`` of merged layers at ``ipc``.

    Raise SettingError for invalid values; ``where`` is the prefix of messages about combinations.
    """
    values = {key: at_ipc(value, ipc, origin(layers, key)) for key, value in merge(layers).items()}
    return validated(model, values, lambda keys: (*origin(layers, keys[0]), *keys[1:]), where)


def origin(layers: Sequence[Layer], key: str | int) -> KeyPath:
    """Return the keys that lead to the value of a key, in the last layer that has it."""
    return next(((*keys, key) for keys, values in reversed(layers) if key in values), (key,))


def at_ipc(value: Any, ipc: int | None, keys: KeyPath) -> Any:
    """Return the value at ``keys`` for ``ipc``; ``ipc`` is None for a section with one value for every ipc."""
    if not isinstance(value, Mapping):
        return value
    if keys[-1] in _MERGED_KEYS:
        return {name: at_ipc(option, ipc, (*keys, name)) for name, option in value.items()}
    if keys[-1] in _MAPPING_VALUED and value and not any(isinstance(k, int) for k in value):
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


def inherited_ipcs(values: Mapping[str, Any], ipc: int, path: str = "") -> dict[str, int]:
    """Map each key (or options.key) whose value comes from a lower ipc's entry to that ipc.

    >>> inherited_ipcs({"image_lr": {1: 0.1, 10: 0.3}, "options": {"steps": {1: 20}, "batch": 8}}, 5)
    {'image_lr': 1, 'options.steps': 1}
    """
    entries = {}
    for key, value in values.items():
        if key in _MERGED_KEYS and isinstance(value, Mapping):
            entries |= inherited_ipcs(value, ipc, f"{path}{key}.")
        elif isinstance(value, Mapping) and ipc not in value and value and all(isinstance(k, int) for k in value):
            entries[path + key] = max(k for k in value if k <= ipc)
    return entries
