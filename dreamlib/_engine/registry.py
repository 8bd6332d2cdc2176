"""Registries of components by name, with errors that suggest the nearest match."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dreamlib.errors import unknown

T = TypeVar("T")


def import_modules(package: str, folders: Iterable[str]) -> None:
    """Import a package's modules so that they register their components; skip names beginning with ``_``.

    package, folders: the package's ``__name__`` and ``__path__``.
    """
    for module in pkgutil.iter_modules(folders):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")


def configured(kind: Callable[..., T], options: Mapping[str, Any], what: str) -> T:
    """Return a component built from its options.

    kind: the component's dataclass.
    options: values by field name, as read from a file; types and limits are checked.
    what: the component's name, for errors.

    Raise UnknownNameError for an unknown option or a value that its ``Literal`` does not list, ValueError for a value
    of another type or out of range.

    >>> from dataclasses import make_dataclass
    >>> square = make_dataclass("Square", [("side", int, 1)])
    >>> configured(square, {"side": 3.0}, "shape 'square'").side
    3
    >>> configured(square, {"side": "big"}, "shape 'square'")
    Traceback (most recent call last):
        ...
    ValueError: option side of shape 'square': Input should be a valid integer, ... an integer, got 'big'
    """
    return kind(**{name: option(kind, name, value, what) for name, value in options.items()})


def option(kind: Callable[..., Any], name: str, value: Any, what: str) -> Any:
    """Return one option of a component, converted to the type of its field; raise as ``configured`` does."""
    known = sorted(field.name for field in fields(kind))  # type: ignore[arg-type]
    if name not in known:
        raise unknown("option", name, known or ["(it takes none)"], what)
    type_hint = get_type_hints(kind, include_extras=True)[name]
    if get_origin(type_hint) is Literal and value not in get_args(type_hint):
        raise unknown(name, value, list(get_args(type_hint)), what)
    try:
        converted = TypeAdapter(type_hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"option {name} of {what}: {reason}, got {value!r}") from None
    # An int stays an int if a float is expected, so that messages show 0 and not 0.0.
    return value if type(value) is int and type(converted) is float else converted


class Registry(dict[str, T]):
    """Components of one kind by name; a new component registers itself.

    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... def square(side): return side * side
    >>> shapes["square"](3), shapes.names()
    (9, ['square'])
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a component under ``name``; raise ValueError if the name is taken."""

        def decorate(item: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} '{name}' is registered already; choose another name")
            self[name] = item
            return item

        return decorate

    def __missing__(self, name: str) -> T:
        raise unknown(self.kind, name, self.names())

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self)
