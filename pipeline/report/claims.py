"""Judge the claims that studies/claims.yaml lists, each by its kind of evidence."""

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field
from ruamel.yaml import YAML

from dreamlib.settings import Positive, Strict
from pipeline.report.results import Claims
from pipeline.report.statistics import (
    by_seed,
    curve_by_seed,
    judge,
    judge_share,
    operations_saved,
    share_of_iterations,
    together,
)

CLAIMS_FILE = Path("studies") / "claims.yaml"
MEASURES = ["distance", "norm", "norm_std", "variance", "nearest_distance", "clusters_hit"]


class _Claim(Strict):
    """What every claim states; ``margin`` is by how much more than nothing the evidence must show."""

    id: str
    claim: str
    source: str
    margin: float

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return what was measured, in words, and the verdict."""
        raise NotImplementedError


class Pair(Strict):
    """Two methods to compare at one ipc; on the matched network and under the protocol by default."""

    method: str
    over: str
    ipc: Positive
    network: str | None = None
    view: str = "protocol"
    name: str | None = None

    @property
    def label(self) -> str:
        """The name in the report."""
        return self.name or f"{self.method} over {self.over}"


class PairedGain(_Claim):
    """A method has a higher test accuracy than another, seed by seed."""

    kind: Literal["paired_gain"]
    study: str
    parts: Annotated[list[Pair], Field(min_length=1)]
    note: str = ""

    def gains(self, claims: Claims) -> dict[str, list[float]]:
        """Return one gain (fraction) a seed for each part."""
        gains = {}
        for part in self.parts:
            table = by_seed(claims.of(self.study), part.ipc, part.network, part.view)
            gains[part.label] = list(table[part.method] - table[part.over])
        return gains

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return the gains in points: mean and range over seeds."""
        gains = self.gains(claims)
        measured = "; ".join(f"{label}: {points(part)}" for label, part in gains.items())
        note = f" ({self.note})" if self.note else ""
        return measured + note, together([judge(part, self.margin) for part in gains.values()])


class BatchPart(Strict):
    """A measure of one kind of batch that is expected to be smaller or larger than another kind's."""

    name: str
    measure: str
    of: str
    than: str
    expected: Literal["smaller", "larger"]


class BatchMeasure(_Claim):
    """Real batches of one kind differ from those of another, seed by seed."""

    kind: Literal["batch_measure"]
    parts: Annotated[list[BatchPart], Field(min_length=1)]

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return both means and deviations over seeds."""
        tables, measured, verdicts = batches_by_seed(claims), [], []
        for part in self.parts:
            table = tables[part.measure]
            means = [f"{kind} {table[kind].mean():.3f} ± {table[kind].std():.3f}" for kind in (part.of, part.than)]
            measured.append(f"{part.name}: {', '.join(means)}")
            difference = table[part.of] - table[part.than]
            verdicts.append(judge(list(difference if part.expected == "larger" else -difference), self.margin))
        return "; ".join(measured), together(verdicts)


class FirstReaches(_Claim):
    """A method reaches another's final validation accuracy in fewer iterations."""

    kind: Literal["first_reaches"]
    study: str
    method: str
    target: str
    target_name: str
    ipc: Annotated[list[Positive], Field(min_length=1)]

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return the share of iterations with its interval, for each ipc."""
        measured, verdicts = [], []
        for ipc in self.ipc:
            target, curve = (curve_by_seed(claims.of(self.study), method, ipc) for method in (self.target, self.method))
            share, low, high = share_of_iterations(target, curve)
            measured.append(
                f"ipc {ipc}: {_share(share)} of {self.target_name}'s {target.columns.max()} iterations "
                f"(95 % interval: {_share(low)} to {_share(high)})"
            )
            verdicts.append(judge_share(share, low, high, self.margin))
        return "; ".join(measured), together(verdicts)


class SizeRatio(_Claim):
    """A distilled set takes fewer bytes than all training images."""

    kind: Literal["size_ratio"]
    ipc: Annotated[list[Positive], Field(min_length=1)]

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return the ratio for each ipc."""
        stored = claims.costs.groupby("ipc")["stored_bytes"].first()
        ratios = {ipc: stored[0] / stored[ipc] for ipc in self.ipc}
        measured = "; ".join(f"ipc {ipc}: {ratio:,.0f} times fewer bytes" for ipc, ratio in ratios.items())
        return measured, together([judge([ratio - 1], self.margin) for ratio in ratios.values()])


class OperationsSaved(_Claim):
    """Training on a distilled set takes fewer operations than training on all images to the same accuracy."""

    kind: Literal["operations_saved"]
    ipc: Annotated[list[Positive], Field(min_length=1)]

    def judged(self, claims: Claims) -> tuple[str, str]:
        """Return the share saved for each ipc: mean and range over networks."""
        saved = {ipc: operations_saved(claims.costs, ipc, claims.chance) for ipc in self.ipc}
        measured = "; ".join(
            f"ipc {ipc}: {100 * sum(part) / len(part):+.0f} % ({100 * min(part):+.0f} to {100 * max(part):+.0f})"
            for ipc, part in saved.items()
        )
        return f"operations saved: {measured}", together([judge(part, self.margin) for part in saved.values()])


Claim = Annotated[PairedGain | BatchMeasure | FirstReaches | SizeRatio | OperationsSaved, Field(discriminator="kind")]


class _ClaimList(Strict):
    claims: Annotated[list[Claim], Field(min_length=1)]


def read_claim_list(root: Path) -> list[Claim]:
    """Return the claims of studies/claims.yaml; raise pydantic's ValidationError for what is wrong in it."""
    return _ClaimList.model_validate(YAML(typ="safe", pure=True).load(root / CLAIMS_FILE)).claims


def verdicts(claims: Claims) -> pd.DataFrame:
    """Return every claim with what was measured and its verdict."""
    rows = [(claim.claim, *claim.judged(claims)) for claim in read_claim_list(claims.root)]
    return pd.DataFrame(rows, columns=["claim", "measured", "verdict"]).set_index("claim")


def batches_by_seed(claims: Claims) -> dict[str, pd.DataFrame]:
    """Return measure → its mean over classes and points, seeds (rows) × kinds of batch (columns)."""
    means = claims.table("batches").groupby(["seed", "batch"], sort=False)[MEASURES].mean()
    return {measure: means[measure].unstack().rename_axis(columns=None) for measure in MEASURES}


def points(gains: list[float]) -> str:
    """Return gains (fractions) in points: mean and range over seeds.

    >>> points([0.01, 0.03])
    '+2.0 points (+1.0 to +3.0)'
    """
    mean = sum(gains) / len(gains)
    return f"{100 * mean:+.1f} points ({100 * min(gains):+.1f} to {100 * max(gains):+.1f})"


def _share(value: float) -> str:
    return "more than all" if value == float("inf") else f"{100 * value:.0f} %"
