"""Errors that more than one layer raises."""

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """``name`` is not registered; the message lists the registered names."""

    name: object = None


class ParameterError(ValueError):
    """A setting, or a combination of settings, that cannot be run; the message lists the alternatives."""


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Return names in one line: the first ``limit`` of them, and how many more there are.

    >>> listed(["a", "b"]), listed("abcdefghijkl")
    ('a, b', 'a, b, c, d, e, f, g, h, i, j and 2 more')
    """
    all_names = list(names)
    more = len(all_names) - limit
    return ", ".join(all_names[:limit]) + (f" and {more} more" if more > 0 else "")


def unknown(kind: str, name: object, known: list[str], owner: str = "") -> UnknownNameError:
    """Return the error for a name that is not among ``known``, suggesting the nearest match.

    owner: what the name belongs to, for the message.

    >>> str(unknown("option", "widht", ["depth", "width"], "network 'convnet'"))
    "unknown option 'widht' of network 'convnet': did you mean 'width'? Known: depth, width"
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" did you mean '{near[0]}'?" if near else ""
    error = UnknownNameError(f"unknown {kind} '{name}'{owner and ' of ' + owner}:{hint} Known: {', '.join(known)}")
    error.name = name
    return error
