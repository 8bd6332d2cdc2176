"""Tables as text: Markdown, and its place in README.md."""

from collections.abc import Callable, Iterable


def markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table that ends in a line break; cells as ``str`` gives them.

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
    """Mean ± standard deviation, in percent.

    >>> percent(0.7512, 0.0104)
    '75.1 ± 1.0'
    """
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def between(text: str, begin: str, end: str, table: Callable[[], str]) -> str:
    """README.md's text with what stands between two markers replaced by what ``table`` gives.

    Raises ValueError where a marker is missing or repeated, before the table is asked for.

    >>> between("a <1> old <2> z", "<1>", "<2>", lambda: "new")
    'a <1>\\nnew<2> z'
    """
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md lost its markers; put '{begin}' and '{end}' around the table, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table()}{end}{rest.split(end)[1]}"
