"""Markdown tables, and the place of generated text on a page."""

from collections.abc import Callable, Iterable


def markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table that ends in a line break; cells as ``str`` gives them.

    >>> print(markdown(["ipc", "accuracy"], [(1, "75.8")]), end="")
    | ipc | accuracy |
    |---|---|
    | 1 | 75.8 |
    """
    head = list(columns)
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(head), *text[1:]]) + "\n"


def percent(mean: float, std: float) -> str:
    """Return a mean and a standard deviation, fractions, in percent.

    >>> percent(0.7512, 0.0104)
    '75.1 ± 1.0'
    """
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def between(text: str, name: str, content: Callable[[], str]) -> str:
    """Return ``text`` with what stands between the markers of block ``name`` replaced by ``content()``.

    Raises ValueError where a marker is missing or repeated, before the content is computed.

    >>> between("a <!-- begin x --> old <!-- end x --> z", "x", lambda: "new")
    'a <!-- begin x -->\\nnew<!-- end x --> z'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the markers '{begin}' and '{end}' must stand on the page once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content()}{end}{rest.split(end)[1]}"
