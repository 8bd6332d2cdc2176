"""The tables of the study of DREAM's claims, read from its results."""

import math
from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from pipeline.params import read_claims
from pipeline.report.claims import MEASURES, batches_by_seed
from pipeline.report.results import Claims
from pipeline.report.statistics import (
    break_even,
    by_seed,
    curve_by_seed,
    curves,
    first_reaching,
    in_points,
    judge_share,
    real_training,
    share_of_iterations,
    spread,
)
from pipeline.report.tables import percent, with_spread
from pipeline.studies.batch_gradients import KINDS

BASELINE = "idc_same_batch"  # IDC with DREAM's real batch and network steps
METHOD = "dream"
REFERENCE = "both"  # the ablation's entry that is DREAM
# The steps from DREAM to the best sets: each entry of the study `levers` and the earlier entry that it modifies.
LEVERS = {
    "ridge": "dream",
    "ridge_representative": "ridge",
    "ridge_penalty": "ridge",
    "ridge_frequencies": "ridge_penalty",
    "ridge_factor3": "ridge_frequencies",
}


def _shown(accuracies: pd.Series) -> str:
    return percent(accuracies.mean(), accuracies.std())


def training_table(claims: Claims) -> pd.DataFrame:
    """Return test accuracy with networks trained as in the released code and as in earlier versions of this project."""
    table, shown = _study_by_seed(claims, "claims_training"), {}
    for method in (BASELINE, METHOD):
        released, cut = table[method], table[f"{method}_cut"]
        shown[method] = {
            "color_crop, as released (%)": _shown(released),
            "flip_color_crop_cutout, as before (%)": _shown(cut),
            "difference (paired by seed)": in_points(list(released - cut)),
        }
    return pd.DataFrame(shown).T.rename_axis("method")


# ---- real batches -----------------------------------------------------------------------------------------------


def batches_by_point(claims: Claims) -> pd.DataFrame:
    """Return all measures by kind of batch and point: means over classes, then mean and std over seeds."""
    per_seed = claims.table("batches").groupby(["batch", "point", "seed"], sort=False)[MEASURES].mean()
    long = per_seed.rename_axis(columns="measure").stack().rename("mean").reset_index()
    return spread(long, ["measure", "batch", "point"], "mean").reset_index()


def batch_table(claims: Claims) -> pd.DataFrame:
    """Return mean ± std over seeds of every measure (columns) and kind of batch.

    A dash marks kinds that always give the same batch.
    """
    kinds = list(dict.fromkeys(claims.table("batches").batch))
    shown = {
        measure: {
            kind: "–" if table[kind].isna().any() else with_spread(table[kind].mean(), table[kind].std(), 3)
            for kind in kinds
        }
        for measure, table in batches_by_seed(claims).items()
    }
    return pd.DataFrame(shown).rename_axis("batch")


def shown_class(claims: Claims) -> int:
    """Return the class whose batches are shown."""
    return read_claims(claims.root).batches.shown


def picked_images(picture: pd.DataFrame, images: Tensor) -> dict[str, Tensor]:
    """Return kind of batch → its first 16 images (n, C, H, W) in the order of ``picture``."""
    return {kind: images[picture[picture[kind] == 1].row.tolist()[:16]] for kind in KINDS}


# ---- iterations to accuracy -------------------------------------------------------------------------------------


def curve_points(claims: Claims) -> pd.DataFrame:
    """Return the validation accuracy of IDC and DREAM by iteration (see ``statistics.curves``)."""
    rows = claims.of_study("claims_curves")
    return curves(rows[rows.method.isin((BASELINE, METHOD))])


def share_table(claims: Claims) -> pd.DataFrame:
    """Return IDC's final accuracy and the share of its iterations and seconds DREAM takes to reach it, by ipc."""
    results, curve, rows = claims.of_study("claims_curves"), curve_points(claims), []
    for ipc in curve.ipc.unique():
        idc, dream = (curve_by_seed(results, method, ipc) for method in (BASELINE, METHOD))
        share, low, high = share_of_iterations(idc, dream)
        last, single_seed = idc.columns.max(), len(idc) == 1  # one seed has no interval
        rows.append(
            {
                "ipc": ipc,
                "iterations": last,
                "idc, validation at the end (%)": _shown(idc[last]),
                "dream, validation at the end (%)": _shown(dream[last]),
                "share": share,
                "low": math.nan if single_seed else low,
                "high": math.nan if single_seed else high,
                "share of seconds": _share_of_seconds(curve[curve.ipc == ipc]),
                "verdict": judge_share(share, low, high),
            }
        )
    return pd.DataFrame(rows).set_index("ipc")


def _share_of_seconds(curve: pd.DataFrame) -> float:
    if curve.seconds.isna().any():
        return math.nan
    idc, dream = (curve[curve.method == method] for method in (BASELINE, METHOD))
    reached = first_reaching(dict(zip(dream.seconds, dream.accuracy, strict=True)), idc.accuracy.iloc[-1])
    return reached / idc.seconds.iloc[-1]


# ---- ablation, factor, levers, transfer -------------------------------------------------------------------------


def _study_by_seed(claims: Claims, study: str) -> pd.DataFrame:
    rows = claims.of_study(study)
    return by_seed(rows, rows.ipc.iloc[0])


def _variants(table: pd.DataFrame, baselines: Mapping[str, str]) -> pd.DataFrame:
    """Return the accuracy of every method, and its gain over the method that ``baselines`` names, paired by seed."""
    shown = {}
    for method in table.columns:
        other = baselines.get(method)
        gain = in_points(list(table[method] - table[other])) if other else "–"
        shown[method] = {"test accuracy (%)": _shown(table[method]), "compared with": other or "–", "gain": gain}
    return pd.DataFrame(shown).T.rename_axis("variant")


def ablation_gains(claims: Claims) -> pd.DataFrame:
    """Return the gain of every variant over ``neither``, variants (rows) × seeds (columns)."""
    table = _study_by_seed(claims, "claims_ablation")
    return table.sub(table["neither"], axis=0).drop(columns="neither").T


def ablation_table(claims: Claims) -> pd.DataFrame:
    """Return the accuracy of every variant and its difference from DREAM."""
    table = _study_by_seed(claims, "claims_ablation")
    return _variants(table, dict.fromkeys(table.columns.drop(REFERENCE), REFERENCE))


def lever_table(claims: Claims) -> pd.DataFrame:
    """Return the accuracy of every entry of the study `levers` and its gain over the entry that it modifies."""
    return _variants(_study_by_seed(claims, "levers"), LEVERS)


def factor_table(claims: Claims) -> pd.DataFrame:
    """Return accuracy (%) by factor (rows) and ipc (columns), with the iterations of each ipc."""
    rows, shown = claims.of_study("claims_factor"), {}
    for ipc, part in rows.groupby("ipc", sort=False):
        table, factors = by_seed(rows, ipc), part.groupby("method")["factor"].first()
        name = f"ipc {ipc}, {part.iteration.max()} iterations"
        shown[name] = {factors[method]: _shown(table[method]) for method in table.columns}
    return pd.DataFrame(shown).rename_axis("factor")


def transfer_table(claims: Claims) -> pd.DataFrame:
    """Return the test accuracy (%) of random images, IDC and DREAM on every network and view, by ipc."""
    rows, shown = claims.of_study("claims_curves"), []
    for (ipc, network, view), _ in rows[rows.split == "test"].groupby(["ipc", "network", "view"], sort=False):
        table = by_seed(rows, ipc, network, view)
        accuracies = {method: _shown(table[method]) for method in table.columns}
        shown.append({"ipc": ipc, "network": network, "view": view} | accuracies)
    return pd.DataFrame(shown).set_index(["ipc", "network", "view"])


# ---- cost of training -------------------------------------------------------------------------------------------


def cost_points(claims: Claims) -> pd.DataFrame:
    """Return accuracy by operations, for the sets and during training on all images.

    Accuracy is the mean over networks with its std; seconds and joules are medians, missing without a record.
    """
    groups = claims.costs.groupby(["data", "ipc", "step", "seen", "operations", "stored_bytes"], sort=False)
    table = groups.agg(
        accuracy=("accuracy", "mean"),
        std=("accuracy", "std"),
        seconds=("seconds", "median"),
        joules=("joules", "median"),
    )
    return table.reset_index()


def cost_table(claims: Claims) -> pd.DataFrame:
    """Return the cost and accuracy of training on each set and on all images, and when a set has paid for itself."""
    shown = []
    for row in cost_points(claims).groupby("data", sort=False).tail(1).itertuples():  # the end of each training
        shown.append(
            {
                "trained on": row.data,
                "steps": row.step,
                "images seen": f"{row.seen:,}",
                "operations": f"{row.operations:.2e}",
                "stored bytes": f"{row.stored_bytes:,}",
                "seconds": f"{row.seconds:.1f}",
                "joules": "not reported" if math.isnan(row.joules) else f"{row.joules:.0f}",
                "validation accuracy (%)": percent(row.accuracy, row.std),
                "trainings until it pays": _break_even(claims, row.ipc, row.accuracy, row.seconds) if row.ipc else "–",
            }
        )
    return pd.DataFrame(shown).set_index("trained on")


def _break_even(claims: Claims, ipc: int, accuracy: float, seconds: float) -> str:
    curve, costs = curve_points(claims), claims.costs
    making = curve[(curve.ipc == ipc) & (curve.method == METHOD)].seconds.max()
    repeats = [real_training(costs, accuracy, repeat, claims.chance, "seconds") for repeat in costs.repeat.unique()]
    count = break_even(making, seconds, float(pd.Series(repeats).median()))
    return "not known" if math.isnan(making) or math.isnan(count) else "never" if count == math.inf else f"{count:,.0f}"
