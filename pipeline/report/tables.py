"""Markdown tables, numbers with their spread, and generated blocks of a page."""

import math
import re
from collections.abc import Callable, Iterable


def markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table that ends in a line break; cells are converted by ``str``.

    >>> print(markdown(["ipc", "accuracy"], [(1, "75.8")]), end="")
    | ipc | accuracy |
    |---|---|
    | 1 | 75.8 |
    """
    head = list(columns)
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(head), *text[1:]]) + "\n"


def code_span(text: str) -> str:
    """Return text as Markdown code, which shows every character literally.

    >>> code_span("$x_1$"), code_span("a`b")
    ('`$x_1$`', '``a`b``')
    """
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def with_spread(mean: float, std: float, digits: int, unit: str = "", sign: str = "") -> str:
    """Return a mean with its standard deviation or, if that is missing, the number of values.

    digits: digits after the decimal point
    unit: suffix of the number
    sign: "+" to always show the sign

    >>> with_spread(0.21, 0.01, 3), with_spread(0.21, math.nan, 3)
    ('0.210 ± 0.010', '0.210 (n = 1)')
    """
    shown = f"{mean:{sign}.{digits}f}"
    return f"{shown}{unit} (n = 1)" if math.isnan(std) else f"{shown} ± {std:.{digits}f}{unit}"


def percent(mean: float, std: float, unit: str = "") -> str:
    """Return a mean and a standard deviation (fractions) in percent; see ``with_spread``.

    >>> percent(0.7512, 0.0104), percent(0.7512, math.nan, " %")
    ('75.1 ± 1.0', '75.1 % (n = 1)')
    """
    return with_spread(100 * mean, 100 * std, 1, unit)


def replace_block(text: str, name: str, content: Callable[[], str]) -> str:
    """Replace the text between the markers of block ``name`` by ``content()``.

    Raise ValueError if a marker is missing or repeated, before the content is computed.

    >>> replace_block("a <!-- begin x --> old <!-- end x --> z", "x", lambda: "new")
    'a <!-- begin x -->\\nnew<!-- end x --> z'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the markers '{begin}' and '{end}' must each occur exactly once on the page")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content()}{end}{rest.split(end)[1]}"
