"""Judge the claims in studies/claims.yaml, each by its kind of evidence."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib.errors import unknown
from pipeline.params.errors import KeyPath, SettingError, check_keys, located, mapping
from pipeline.params.read import read_yaml
from pipeline.report.results import Claims
from pipeline.report.statistics import (
    by_seed,
    combined_verdict,
    curve_by_seed,
    in_points,
    judge,
    judge_share,
    operations_saved,
    share_of_iterations,
)
from pipeline.report.tables import with_spread

CLAIMS_FILE = Path("studies") / "claims.yaml"
MEASURES = ["distance", "norm", "norm_std", "variance", "nearest_distance", "clusters_hit"]
PARTS = {  # kind of evidence → the keys that each of its parts needs, and those that it may have
    "paired_gain": (("method", "over", "ipc"), ("name", "network", "view")),
    "batch_measure": (("name", "measure", "of", "than", "expected"), ()),
}
MeasuredVerdict = tuple[str, str]  # what was measured, as text, and the verdict


def read_claim_list(root: Path) -> list[dict[str, Any]]:
    """Return the claims of studies/claims.yaml: id, claim, source, margin, evidence (its kind and arguments).

    Raise ParameterError for an unknown or missing key, and for an unknown kind of evidence.
    """
    tree = read_yaml(root / CLAIMS_FILE)
    with located({f"{CLAIMS_FILE.as_posix()}: ": tree}):
        _check_keys(tree, (), ("claims",))
        for claim in tree["claims"]:
            keys: KeyPath = ("claims", str(mapping(claim, ("claims",)).get("id")))
            _check_keys(claim, keys, ("id", "claim", "source", "margin", "evidence"))
            keys = (*keys, "evidence")
            evidence = mapping(claim["evidence"], keys)
            if evidence.get("kind") not in KINDS:
                raise SettingError(((*keys, "kind"), str(unknown("kind of evidence", evidence.get("kind"), [*KINDS]))))
            _, _, *arguments = signature(KINDS[evidence["kind"]]).parameters.values()  # after claims and margin
            optional = [argument.name for argument in arguments if argument.default is not argument.empty]
            needed = [argument.name for argument in arguments if argument.name not in optional]
            _check_keys(evidence, keys, ("kind", *needed), optional)
            for part in evidence.get("parts", ()):
                _check_keys(part, (*keys, "parts"), *PARTS[evidence["kind"]])
    return tree["claims"]


def _check_keys(section: Any, keys: KeyPath, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
    check_keys(section, {*needed, *optional}, keys)
    for key in needed:
        if key not in section:
            raise SettingError(((*keys, key), "a value is missing"))


def verdicts(claims: Claims) -> pd.DataFrame:
    """Return every claim (index) with its kind of evidence, what was measured and its verdict."""
    rows = []
    for claim in read_claim_list(claims.root):
        arguments = dict(claim["evidence"])
        kind = arguments.pop("kind")
        rows.append((claim["claim"], kind, *KINDS[kind](claims, claim["margin"], **arguments)))
    return pd.DataFrame(rows, columns=["claim", "kind", "measured", "verdict"]).set_index("claim")


def paired_gain(
    claims: Claims, margin: float, study: str, parts: Sequence[Mapping[str, Any]], note: str = ""
) -> MeasuredVerdict:
    """Judge whether ``method`` has a higher test accuracy than ``over``, seed by seed, in every part."""
    measured, judgements = [], []
    for part in parts:
        method, over = part["method"], part["over"]
        table = by_seed(claims.of_study(study), part["ipc"], part.get("network"), part.get("view", "protocol"))
        gains = list(table[method] - table[over])
        measured.append(f"{part.get('name', f'{method} over {over}')}: {in_points(gains)}")
        judgements.append(judge(gains, margin))
    return "; ".join(measured) + (f" ({note})" if note else ""), combined_verdict(judgements)


def batch_measure(claims: Claims, margin: float, parts: Sequence[Mapping[str, str]]) -> MeasuredVerdict:
    """Judge whether a measure of one kind of real batch is smaller, or larger, than that of another in every seed."""
    tables, measured, judgements = batches_by_seed(claims), [], []
    for part in parts:
        table, kinds = tables[part["measure"]], (part["of"], part["than"])
        means = [f"{kind} {with_spread(table[kind].mean(), table[kind].std(), 3)}" for kind in kinds]
        measured.append(f"{part['name']}: {', '.join(means)}")
        sign = {"larger": 1, "smaller": -1}[part["expected"]]
        judgements.append(judge(list(sign * (table[kinds[0]] - table[kinds[1]])), margin))
    return "; ".join(measured), combined_verdict(judgements)


def batches_by_seed(claims: Claims) -> dict[str, pd.DataFrame]:
    """Return measure → its mean over classes and points, seeds (rows) × kinds of batch (columns)."""
    means = claims.table("batches").groupby(["seed", "batch"], sort=False)[MEASURES].mean()
    return {measure: means[measure].unstack().rename_axis(columns=None) for measure in MEASURES}


def first_reaches(
    claims: Claims, margin: float, study: str, method: str, target: str, target_name: str, ipc: Sequence[int]
) -> MeasuredVerdict:
    """Judge whether ``method`` reaches the final validation accuracy of ``target`` in fewer iterations."""
    measured, judgements = [], []
    for one_ipc in ipc:
        slow, fast = (curve_by_seed(claims.of_study(study), name, one_ipc) for name in (target, method))
        share = share_of_iterations(slow, fast)
        first, low, high = ("more than all" if s == float("inf") else f"{100 * s:.0f} %" for s in share)
        iterations = f"{first} of {target_name}'s {slow.columns.max()} iterations"
        interval = f"95 % interval: {low} to {high}" if len(slow) > 1 else "n = 1"
        measured.append(f"ipc {one_ipc}: {iterations} ({interval})")
        judgements.append(judge_share(*share, margin))
    return "; ".join(measured), combined_verdict(judgements)


def size_ratio(claims: Claims, margin: float, ipc: Sequence[int]) -> MeasuredVerdict:
    """Judge whether a distilled set takes fewer bytes than all training images."""
    stored = claims.costs.groupby("ipc")["stored_bytes"].first()
    ratios = {one_ipc: stored[0] / stored[one_ipc] for one_ipc in ipc}
    measured = "; ".join(f"ipc {one_ipc}: {ratio:,.0f} times fewer bytes" for one_ipc, ratio in ratios.items())
    return measured, combined_verdict([judge([ratio - 1], margin) for ratio in ratios.values()])


def operations(claims: Claims, margin: float, ipc: Sequence[int]) -> MeasuredVerdict:
    """Judge whether training on a set takes fewer operations than on all images to the same accuracy."""
    measured, judgements = [], []
    for one_ipc in ipc:
        saved = operations_saved(claims.costs, one_ipc, claims.chance)
        mean, low, high = (100 * share for share in (sum(saved) / len(saved), min(saved), max(saved)))
        spread = f"{low:+.0f} to {high:+.0f}" if len(saved) > 1 else "n = 1"
        measured.append(f"ipc {one_ipc}: {mean:+.0f} % ({spread})")
        judgements.append(judge(saved, margin))
    return f"operations saved: {'; '.join(measured)}", combined_verdict(judgements)


KINDS = {
    "paired_gain": paired_gain,
    "batch_measure": batch_measure,
    "first_reaches": first_reaches,
    "size_ratio": size_ratio,
    "operations_saved": operations,
}
