"""Errors that more than one layer raises."""

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name that is not registered, ``name``; the message lists the names that are."""

    name: object = None


class ParameterError(ValueError):
    """A setting, or a combination of settings, that cannot be run; the message lists the alternatives."""


def listed(names: Iterable[str], most: int = 10) -> str:
    """Return names in one line: the first ``most`` of them, and how many more there are.

    >>> listed(["a", "b"]), listed("abcdefghijkl")
    ('a, b', 'a, b, c, d, e, f, g, h, i, j and 2 more')
    """
    all_names = list(names)
    more = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {more} more" if more > 0 else "")


def unknown(kind: str, name: object, known: list[str]) -> UnknownNameError:
    """Return the error for a name that is not among ``known``, suggesting the nearest match.

    >>> str(unknown("method", "draem", ["dream", "idc"]))
    "unknown method 'draem': did you mean 'dream'? Known: dream, idc"
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" did you mean '{near[0]}'?" if near else ""
    error = UnknownNameError(f"unknown {kind} '{name}':{hint} Known: {', '.join(known)}")
    error.name = name
    return error
