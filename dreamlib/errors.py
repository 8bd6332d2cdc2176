"""Errors that more than one layer raises."""

import difflib


class UnknownNameError(ValueError):
    """A name that is not registered, ``name``; the message lists the names that are."""

    name: object = None


class ParameterError(ValueError):
    """A setting, or a combination of settings, that cannot be run; the message lists the alternatives."""


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
