"""The verdicts on DREAM's claims as text, and the files that the README shows."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dreamlib._engine.files import write_atomically
from pipeline.report.claims import verdicts
from pipeline.report.results import CLAIMS_FOLDER
from pipeline.report.statistics import HOLDS, NOT, PARTLY
from pipeline.report.tables import markdown

__all__ = ["answer", "as_markdown", "verdicts", "write_headline"]


def answer(table: pd.DataFrame) -> str:
    """Return the verdicts in a few sentences of Markdown."""
    listed = {verdict: list(table.index[table.verdict == verdict]) for verdict in (HOLDS, PARTLY, NOT)}
    counted = f"Claims that hold at this budget: {len(listed[HOLDS])} of {len(table)}; partly: {len(listed[PARTLY])}; "
    counted += f"not: {len(listed[NOT])}."
    unseen = "; ".join(f"*{claim}*" for claim in listed[NOT])
    failed = f" Not seen at this budget: {unseen}." if unseen else ""
    sooner = table[table.kind == "first_reaches"].iloc[0]
    needed = f"Iterations that DREAM needs for IDC's final accuracy: {sooner.measured} (**{sooner.verdict}**)."
    length = "The study runs 10 to 120 iterations where the paper runs 200,000: what is not seen here is not refuted."
    return f"{counted} {needed}{failed} {length}"


def as_markdown(table: pd.DataFrame) -> str:
    """Return the verdicts as a Markdown table, because the display of a DataFrame would truncate the sentences."""
    rows = ((claim, row.measured, f"**{row.verdict}**") for claim, row in table.iterrows())
    return markdown(("claim", "measured here", "verdict"), rows)


def write_headline(root: Path, table: pd.DataFrame, figure: Figure) -> None:
    """Write the files that the README shows: results/claims/verdicts.md and results/claims/headline.png."""
    folder = root / CLAIMS_FOLDER
    write_atomically(folder / "verdicts.md", f"{answer(table)}\n\n{as_markdown(table)}".encode())
    # Omit matplotlib's version, so that the bytes are the same.
    figure.savefig(folder / "headline.png", dpi=110, metadata={"Software": None})
