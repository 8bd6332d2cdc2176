"""Errors that locate a wrong value by file and keys."""

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from dreamlib.errors import ParameterError, UnknownNameError, unknown

KeyPath = tuple[str | int, ...]  # the keys that lead to a value
_MESSAGES = {  # pydantic's kind of error → a message that replaces pydantic's
    "list_type": "expected a list, one item per line after `- `",
    "dict_type": "expected a mapping, such as `{key: value}`",
    "model_type": "expected a mapping, such as `{key: value}`",
    "string_pattern_mismatch": "expected auto, cpu, cuda or a GPU such as cuda:1",  # of compute.device
    "too_short": "expected at least one entry",
}


class SettingError(ParameterError):
    """Invalid values: ``problems`` holds (keys, message) pairs; keys are empty for a combination."""

    def __init__(self, *problems: tuple[KeyPath, str]) -> None:
        super().__init__("; ".join(f"{_dotted(keys)}: {text}" if keys else text for keys, text in problems))
        self.problems = problems


@contextmanager
def at_keys(*keys: str | int, where: str = "") -> Iterator[None]:
    """Add to a ValueError the keys that lead to the value, or ``where``, the settings that it is about."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError((keys, f"{where}: {error}" if where else str(error))) from error


@contextmanager
def located(files: Mapping[str, Any], moved: Mapping[KeyPath, KeyPath] | None = None) -> Iterator[None]:
    """Add to a SettingError the file of each value: the last file that contains the longest prefix of its keys.

    It becomes an UnknownNameError for the name of a component, else a ParameterError.

    files: displayed prefix (file and section keys) → tree of sections.
    moved: keys of a section → its keys in the file.
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


def _dotted(keys: KeyPath) -> str:
    return ".".join(map(str, keys))


def _depth(tree: Any, keys: KeyPath) -> int:
    """Return how many of the keys exist in a tree."""
    for depth, key in enumerate(keys):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return depth
    return len(keys)


def mapping(value: Any, keys: KeyPath) -> Mapping[Any, Any]:
    """Return ``value`` if it is a mapping; raise SettingError otherwise."""
    if not isinstance(value, Mapping):
        raise SettingError((keys, f"{_MESSAGES['dict_type']}, got {reprlib.repr(value)}"))
    return value


def check_keys(values: Any, known: Collection[str], keys: KeyPath, kind: str = "key", owner: str = "") -> None:
    """Raise SettingError for a key of ``values`` that is not among ``known``; suggest the nearest known key."""
    for key in mapping(values, keys):
        if key not in known:
            raise SettingError(((*keys, key), str(unknown(kind, key, sorted(known) or ["(it takes none)"], owner))))


def validated(
    model: type[Any], values: Any, file_keys: Callable[[KeyPath], KeyPath] = lambda keys: keys, where: str = ""
) -> Any:
    """Return ``values`` as a ``model``; raise SettingError for everything that is wrong.

    file_keys: maps keys in the model to keys in the file.
    where: prefix of messages about combinations.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingError(*(_explain(problem, file_keys, where) for problem in error.errors())) from None


def _explain(problem: Any, file_keys: Callable[[KeyPath], KeyPath], where: str) -> tuple[KeyPath, str]:
    keys = tuple(part for part in problem["loc"] if part != "[key]")
    cause, text = problem.get("ctx", {}).get("error"), problem["msg"].removeprefix("Value error, ")
    if isinstance(cause, UnknownNameError):
        return file_keys((*keys, str(cause.name))), text
    if not keys:
        return (), f"{where}: {text}" if where else text  # the message names the values
    value = reprlib.repr(problem["input"])
    text = _MESSAGES.get(problem["type"], text)
    return file_keys(keys), text if problem["type"] == "missing" else f"{text}, got {value}"
