"""Every claim of DREAM with what was measured and whether it holds here, computed from the study's results."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dreamlib._engine.files import write_atomically
from pipeline.report.claims import HOLDS, NOT, PARTLY, judge, together
from pipeline.report.tables import markdown
from pipeline.studies.batch_gradients import FOLDER
from pipeline.studies.claims import (
    BASELINE,
    REFERENCE,
    Claims,
    batches_by_seed,
    by_seed,
    cost_points,
    operations_saved,
    plug_in_gains,
    points,
    share_table,
    transfer_gains,
)
from pipeline.studies.training_cost import FULL


def verdicts(claims: Claims) -> pd.DataFrame:
    """Every claim with what was measured and whether it holds here."""
    rows = [*_why(claims), _sooner(claims), _higher(claims), *_parts(claims), _factors(claims)]
    rows += [_plug_in(claims), _transfer(claims), *_buys(claims)]
    return pd.DataFrame(rows, columns=["claim", "measured", "verdict"]).set_index("claim")


def _why(claims: Claims) -> list[tuple[str, str, str]]:
    found = batches_by_seed(claims)
    names = {
        "distance": "relative distance to the full-class gradient",
        "norm_std": "deviation of the gradient norm from batch to batch",
        "nearest_distance": "mean distance to the nearest batch member",
    }
    gains = {m: list(found[m]["random"] - found[m]["representative"]) for m in names}
    told = "; ".join(f"{n}: {_pair(found[m], 'representative', 'random')}" for m, n in names.items())
    shorter = list(found["norm"]["random"] - found["norm"]["representative"])
    norms = list(found["norm"]["boundary"] - found["norm"]["random"])
    cover = list(found["nearest_distance"]["center"] - found["nearest_distance"]["representative"])
    edges = (
        f"norm of boundary batches: {_pair(found['norm'], 'boundary', 'random')}; distance to the nearest member: "
        f"{_pair(found['nearest_distance'], 'center', 'representative')}"
    )
    return [
        (
            "Representative batches stand for their class better and more steadily than random ones",
            told,
            together([judge(g) for g in gains.values()]),
        ),
        (
            "Representative batches have smaller gradients than random ones",
            f"gradient norm: {_pair(found['norm'], 'representative', 'random')}",
            judge(shorter),
        ),
        (
            "Boundary batches have larger gradients; centre-most batches leave more of the class uncovered",
            edges,
            together([judge(norms), judge(cover)]),
        ),
    ]


def _pair(table: pd.DataFrame, one: str, other: str) -> str:
    return f"{one} {table[one].mean():.3f} ± {table[one].std():.3f}, {other} {table[other].mean():.3f} ± " + (
        f"{table[other].std():.3f}"
    )


def _sooner(claims: Claims) -> tuple[str, str, str]:
    table = share_table(claims)
    told = "; ".join(
        f"ipc {ipc}: {_share(r.share)} of IDC's {r.iterations} iterations "
        f"(95 % interval: {_share(r.low)} to {_share(r.high)})"
        for ipc, r in table.iterrows()
    )
    return "DREAM first reaches IDC's final accuracy in fewer iterations", told, together(list(table.verdict))


def _gained(claim: str, gains: dict[str, list[float]], note: str = "") -> tuple[str, str, str]:
    """A claim of gains in accuracy: each by its name, and one verdict."""
    told = "; ".join(f"{name}: {points(g)}" for name, g in gains.items())
    return claim, told + note, together([judge(g) for g in gains.values()])


def _higher(claims: Claims) -> tuple[str, str, str]:
    tables = {ipc: by_seed(claims.curves, ipc) for ipc in claims.curves.params.ipc}
    gains = {f"ipc {ipc}": list(table["dream"] - table[BASELINE]) for ipc, table in tables.items()}
    return _gained("DREAM's final accuracy is higher than IDC's", gains)


def _share(value: float) -> str:
    return "more than all" if value == float("inf") else f"{100 * value:.0f} %"


def _parts(claims: Claims) -> list[tuple[str, str, str]]:
    table = by_seed(claims.ablation, claims.ablation.params.ipc[0])

    def compare(claim: str, pairs: list[tuple[str, str]]) -> tuple[str, str, str]:
        return _gained(claim, {f"{a} over {b}": list(table[a] - table[b]) for a, b in pairs})

    better = [(REFERENCE, "init_only"), (REFERENCE, "batches_only")]
    others = [(REFERENCE, "center"), (REFERENCE, "boundary")]
    return [
        compare("Each ingredient helps by itself", [("init_only", "neither"), ("batches_only", "neither")]),
        compare("Both together are better than either", better),
        compare("Representative batches beat centre-most and boundary ones", others),
        compare(
            "Many sub-clusters with one image each beat few with more",
            [(REFERENCE, "clusters_32x2"), (REFERENCE, "clusters_16x4")],
        ),
        compare("Re-clustering on the way beats clustering once", [(REFERENCE, "interval_40")]),
        compare("Re-clustering every 5 iterations adds to every 10", [("interval_5", REFERENCE)]),
        compare(
            "The current network is the best space to cluster in",
            [(REFERENCE, "features_random"), (REFERENCE, "features_pixels")],
        ),
    ]


def _factors(claims: Claims) -> tuple[str, str, str]:
    few, *_, many = claims.factor.params.ipc
    small, large = by_seed(claims.factor, few), by_seed(claims.factor, many)
    gains = {
        f"ipc {few}, factor 2 over 1": list(small["dream_f2"] - small["dream_f1"]),
        f"ipc {many}, factor 1 over 2": list(large["dream_f1"] - large["dream_f2"]),
    }
    return _gained("Factor 2 helps where images are few and hurts where they are many", gains)


def _plug_in(claims: Claims) -> tuple[str, str, str]:
    return _gained(
        "The two ingredients help whichever method they are plugged into",
        plug_in_gains(claims),
        " (the methods study's own budget)",
    )


def _transfer(claims: Claims) -> tuple[str, str, str]:
    gains = {f"ipc {ipc}, {name}": g for (ipc, name), g in transfer_gains(claims).items()}
    return _gained("DREAM's lead over IDC holds on networks and views it was not made for", gains)


def _buys(claims: Claims) -> list[tuple[str, str, str]]:
    ipcs = claims.curves.params.ipc
    saved = {ipc: operations_saved(claims, ipc) for ipc in ipcs}
    told = "; ".join(f"ipc {ipc}: {100 * sum(s) / len(s):+.0f} % ({100 * min(s):+.0f} to {100 * max(s):+.0f})"
                     for ipc, s in saved.items())  # fmt: skip
    table = cost_points(claims)
    every = table[table.data == FULL].stored_bytes.iloc[0]
    smaller = {r.ipc: every / r.stored_bytes for r in table[table.data != FULL].itertuples()}
    return [
        (
            "A set takes far less room than the data",
            "; ".join(f"ipc {ipc}: {times:,.0f} times fewer bytes" for ipc, times in smaller.items()),
            together([judge([times - 1]) for times in smaller.values()]),
        ),
        (
            "Training on a set takes fewer operations than training on all data to the same accuracy",
            f"operations saved: {told}",
            together([judge(s) for s in saved.values()]),
        ),
    ]


def answer(table: pd.DataFrame) -> str:
    """The verdicts in a few sentences of Markdown."""
    listed = {v: [c for c, r in table.iterrows() if r.verdict == v] for v in (HOLDS, PARTLY, NOT)}
    counted = f"Claims that hold at this budget: {len(listed[HOLDS])} of {len(table)}; partly: {len(listed[PARTLY])}; "
    counted += f"not: {len(listed[NOT])}."
    failed = f" Not seen at this budget: {'; '.join(c[0].lower() + c[1:] for c in listed[NOT])}." if listed[NOT] else ""
    sooner = table[table.index.str.startswith("DREAM first reaches")].iloc[0]
    return (
        f"{counted} DREAM first reaches IDC's final accuracy after {sooner.measured}: **{sooner.verdict}**.{failed} "
        "The study runs tens of iterations where the paper runs 200,000: what is not seen here is not refuted."
    )


def as_markdown(table: pd.DataFrame) -> str:
    """The verdicts as a Markdown table: whole sentences, which a DataFrame's own display would cut short."""
    rows = ((claim, r.measured, f"**{r.verdict}**") for claim, r in table.iterrows())
    return markdown(("claim", "measured here", "verdict"), rows)


def write_headline(root: Path, table: pd.DataFrame, figure: Figure) -> None:
    """What the README shows of the study: results/claims/verdicts.md and results/claims/headline.png."""
    folder = root / "results" / FOLDER
    write_atomically(folder / "verdicts.md", f"{answer(table)}\n\n{as_markdown(table)}".encode())
    figure.savefig(folder / "headline.png", dpi=110, metadata={"Software": None})  # no version: the same file again
