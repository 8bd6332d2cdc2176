"""Errors that say where a wrong value stands: file and keys."""

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from dreamlib.errors import ParameterError, UnknownNameError, unknown

Keys = tuple[str | int, ...]  # those that lead to a value
_REMEDIES = {  # pydantic's kind of a problem → what to say in place of its message
    "list_type": "a list belongs here, each item on a line of its own after `- `",
    "dict_type": "keys and values belong here",
    "model_type": "keys and values belong here",
    "too_short": "at least 1 entry belongs here",
}


class SettingError(ParameterError):
    """Values that cannot be used: for each the keys that lead to it, none for a combination, and what is wrong."""

    def __init__(self, *problems: tuple[Keys, str]) -> None:
        super().__init__("; ".join(f"{_dotted(keys)}: {text}" if keys else text for keys, text in problems))
        self.problems = problems


@contextmanager
def at(*keys: str | int, where: str = "") -> Iterator[None]:
    """Add to a ValueError the keys that lead to the value, or the settings that it is about."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError((keys, f"{where}: {error}" if where else str(error))) from error


@contextmanager
def located(files: Mapping[str, Any], moved: Mapping[Keys, Keys] | None = None) -> Iterator[None]:
    """Add to a SettingError where each value is read from: the last file that has most of its keys.

    It becomes an UnknownNameError for the name of a component, else a ParameterError.

    files: file, and keys to the tree of sections within it, as they are shown → the tree.
    moved: keys of a section → those it has in its file.
    """
    try:
        yield
    except SettingError as error:
        lines = []
        for keys, text in error.problems:
            for section, original in (moved or {}).items():
                keys = (*original, *keys[len(section) :]) if keys[: len(section)] == section else keys
            file = max(reversed(files), key=lambda file, keys=keys: _depth(files[file], keys))
            lines.append(f"{file}{_dotted(keys)}: {text}" if keys else text)
        kind = UnknownNameError if isinstance(error.__cause__, UnknownNameError) else ParameterError
        raise kind("; ".join(lines)) from None


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _depth(tree: Any, keys: Keys) -> int:
    """Return how many of the keys lead somewhere in a tree."""
    for depth, key in enumerate(keys):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return depth
    return len(keys)


def mapping(value: Any, keys: Keys) -> Mapping[Any, Any]:
    """Return ``value`` if it holds keys and values; raise SettingError otherwise."""
    if not isinstance(value, Mapping):
        raise SettingError((keys, f"keys and values belong here, got {reprlib.repr(value)}"))
    return value


def check_keys(values: Any, known: Collection[str], keys: Keys, kind: str = "key") -> None:
    """Raise SettingError for a key of ``values`` that is not among ``known``, naming the nearest that is."""
    for key in mapping(values, keys):
        if key not in known:
            raise SettingError(((*keys, key), str(unknown(kind, key, sorted(known) or ["(it takes none)"]))))


def validated(
    model: type[Any], values: Any, origin: Callable[[Keys], Keys] = lambda keys: keys, where: str = ""
) -> Any:
    """Return ``values`` as a ``model``; raise SettingError for everything that is wrong.

    origin: returns where a value stands whose keys in the model are given.
    where: names the values in a message on several of them.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingError(*(_explain(problem, origin, where) for problem in error.errors())) from None


def _explain(problem: Any, origin: Callable[[Keys], Keys], where: str) -> tuple[Keys, str]:
    keys = tuple(part for part in problem["loc"] if part != "[key]")
    cause, text = problem.get("ctx", {}).get("error"), problem["msg"].removeprefix("Value error, ")
    if isinstance(cause, UnknownNameError):
        return origin((*keys, str(cause.name))), text
    if not keys:
        return (), f"{where}: {text}" if where else text  # the message names the values
    value = reprlib.repr(problem["input"])
    text = _REMEDIES.get(problem["type"], text)
    return origin(keys), text if problem["type"] == "missing" else f"{text}, got {value}"
