"""The study of DREAM's claims read back: the tables and gains behind each question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from dreamlib._engine.files import read_json
from pipeline.params import find_root, read_claims, read_params
from pipeline.project import Project, Setting
from pipeline.report.claims import break_even, first_reaching, judge_share, share_of_iterations
from pipeline.report.tables import percent
from pipeline.studies.batch_gradients import FOLDER, STUDY
from pipeline.studies.batch_measures import KINDS
from pipeline.studies.methods import plug_in_pairs, views
from pipeline.studies.training_cost import FULL, METHOD

MEASURES = ["distance", "norm", "norm_std", "variance", "nearest_distance", "clusters_hit"]
BASELINE = "idc_same_batch"  # IDC with DREAM's real batch and network steps
REFERENCE = "both"  # the ablation's entry that is DREAM
# What leads from DREAM to the best sets: every entry of the study `levers` with the one it differs from in one thing.
LEVERS = {
    "ridge": "dream",
    "ridge_representative": "ridge",
    "ridge_penalty": "ridge",
    "ridge_frequencies": "ridge_penalty",
    "ridge_factor3": "ridge_frequencies",
}


@dataclass(frozen=True)
class Claims:
    """The studies the report reads, and the record of what they took."""

    curves: Project
    ablation: Project
    factor: Project
    levers: Project
    methods: Project
    training: Project
    record: dict[str, Any]

    @classmethod
    def open(cls, root: Path | None = None) -> "Claims":
        """All of them around the current directory; nothing of the data is read."""
        root = root or find_root()
        names = (STUDY, "claims_ablation", "claims_factor", "levers", "methods", "claims_training")
        path = root / "results" / FOLDER / "record.json"
        return cls(*(Project(root, read_params(root, n), n) for n in names), read_json(path) if path.is_file() else {})

    def table(self, name: str) -> pd.DataFrame:
        """results/claims/<name>.csv."""
        path = self.curves.root / "results" / FOLDER / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; make it with `dvc repro claims`")
        return pd.read_csv(path)


def by_seed(project: Project, ipc: int, network: str | None = None, view: str = "protocol") -> pd.DataFrame:
    """Test accuracy of every method (columns) for each seed (rows) at ``ipc``; on the matched network by default."""
    rows = views(project)
    rows = rows[(rows.ipc == ipc) & (rows.view == view) & (rows.network == (network or rows.network.iloc[0]))]
    table = rows.groupby(["seed", "method"], sort=False)["accuracy"].mean().unstack()
    return table[list(dict.fromkeys(rows.method))].rename_axis(columns=None)


def points(gains: Sequence[float]) -> str:
    """Gains (fractions) in points: mean and range over seeds.

    >>> points([0.01, 0.03])
    '+2.0 points (+1.0 to +3.0)'
    """
    mean = sum(gains) / len(gains)
    return f"{100 * mean:+.1f} points ({100 * min(gains):+.1f} to {100 * max(gains):+.1f})"


def training_table(claims: Claims) -> pd.DataFrame:
    """Test accuracy with the networks trained between matchings as released, and as this project did before."""
    ipc, rows = claims.training.params.ipc[0], {}
    for method in (BASELINE, "dream"):
        released, cut = (by_seed(claims.training, ipc)[name] for name in (method, f"{method}_cut"))
        rows[method] = {
            "color_crop, as released (%)": percent(released.mean(), released.std()),
            "flip_color_crop_cutout, as before (%)": percent(cut.mean(), cut.std()),
            "difference (paired by seed)": points(list(released - cut)),
        }
    return pd.DataFrame(rows).T.rename_axis("method")


# ---- why --------------------------------------------------------------------------------------------------------


def batches_by_point(claims: Claims) -> pd.DataFrame:
    """Every measure of every kind of batch at every point: mean over classes, then mean and deviation over seeds."""
    per_seed = claims.table("batches").groupby(["batch", "point", "seed"], sort=False)[MEASURES].mean()
    long = per_seed.rename_axis(columns="measure").stack().rename("value").reset_index()
    found = long.groupby(["measure", "batch", "point"], sort=False)["value"].agg(["mean", "std"])
    return found.fillna({"std": 0.0}).reset_index()


def batches_by_seed(claims: Claims) -> dict[str, pd.DataFrame]:
    """Measure → its mean over classes and points, seeds (rows) × kinds of batch (columns)."""
    means = claims.table("batches").groupby(["seed", "batch"], sort=False)[MEASURES].mean()
    return {measure: means[measure].unstack().rename_axis(columns=None) for measure in MEASURES}


def batch_table(claims: Claims) -> pd.DataFrame:
    """Mean ± deviation over seeds of every measure, a row a kind; a dash where a kind is one batch, not drawn."""
    found = batches_by_seed(claims)
    kinds = list(dict.fromkeys(claims.table("batches").batch))
    shown = {
        measure: {k: "–" if t[k].isna().any() else f"{t[k].mean():.3f} ± {t[k].std():.3f}" for k in kinds}
        for measure, t in found.items()
    }
    return pd.DataFrame(shown).rename_axis("batch")


# ---- iterations to accuracy -------------------------------------------------------------------------------------


def curve_of(project: Project, method: str, ipc: int) -> pd.DataFrame:
    """Validation accuracy of one method, seeds (rows) × iterations (columns)."""
    rows = {}
    for seed in project.params.seeds:
        table = pd.read_csv(project.file("curves", Setting(method, ipc, seed), ".csv"))
        rows[seed] = table.set_index("iteration")["accuracy"]
    return pd.DataFrame(rows).T


def seconds_at(claims: Claims, method: str, ipc: int) -> dict[int, float]:
    """Iteration → seconds of distillation until then, the median over seeds; empty without a record.

    The median, because the first run of a shape also pays for its compilation.
    """
    taken = [
        claims.record.get(f"{STUDY}/distillation-{Setting(method, ipc, s).name}", {}).get("snapshots_s", {})
        for s in claims.curves.params.seeds
    ]
    return {int(i): float(pd.Series([t[i] for t in taken]).median()) for i in taken[0]} if all(taken) else {}


def curve_points(claims: Claims) -> pd.DataFrame:
    """Accuracy along the way of IDC and DREAM: ipc, method, iteration, seconds, mean and deviation over seeds."""
    rows = []
    for ipc in claims.curves.params.ipc:
        for method in (BASELINE, "dream"):
            curve, seconds = curve_of(claims.curves, method, ipc), seconds_at(claims, method, ipc)
            rows += [
                {"ipc": ipc, "method": method, "iteration": i, "seconds": seconds.get(i, float("nan"))}
                | {"accuracy": curve[i].mean(), "std": curve[i].std()}
                for i in curve.columns
            ]
    return pd.DataFrame(rows)


def share_table(claims: Claims) -> pd.DataFrame:
    """For each ipc: IDC's final accuracy, and the share of its iterations and seconds DREAM takes to as much."""
    rows = []
    for ipc in claims.curves.params.ipc:
        idc, dream = (curve_of(claims.curves, m, ipc) for m in (BASELINE, "dream"))
        share, low, high = share_of_iterations(idc, dream)
        last = idc.columns.max()
        rows.append(
            {"ipc": ipc, "iterations": last}
            | {"idc, validation at the end (%)": percent(idc[last].mean(), idc[last].std())}
            | {"dream, validation at the end (%)": percent(dream[last].mean(), dream[last].std())}
            | {"share": share, "low": low, "high": high, "share of seconds": _share_of_seconds(claims, ipc)}
            | {"verdict": judge_share(share, low, high)}
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("ipc")


def _share_of_seconds(claims: Claims, ipc: int) -> float:
    slow, fast = (seconds_at(claims, m, ipc) for m in (BASELINE, "dream"))
    if not slow or not fast:
        return float("nan")
    idc, dream = (curve_of(claims.curves, m, ipc).mean() for m in (BASELINE, "dream"))
    reached = first_reaching({fast[i]: a for i, a in dream.items()}, idc[max(slow)])
    return reached / slow[max(slow)]


# ---- ablation ---------------------------------------------------------------------------------------------------


def ablation_gains(claims: Claims, against: str = "neither") -> pd.DataFrame:
    """What every variant adds to ``against``, variants (rows) × seeds (columns)."""
    table = by_seed(claims.ablation, claims.ablation.params.ipc[0])
    return table.sub(table[against], axis=0).drop(columns=against).T


def ablation_table(claims: Claims) -> pd.DataFrame:
    """Accuracy of every variant, and what it lacks or adds beside DREAM, seed by seed."""
    table = by_seed(claims.ablation, claims.ablation.params.ipc[0])
    rows = {
        m: {"test accuracy (%)": percent(table[m].mean(), table[m].std())}
        | {f"beside {REFERENCE}": points(list(table[m] - table[REFERENCE])) if m != REFERENCE else "–"}
        for m in table.columns
    }
    return pd.DataFrame(rows).T.rename_axis("variant")


def factor_table(claims: Claims) -> pd.DataFrame:
    """Accuracy (%) by factor (rows) and ipc (columns), with the iterations of each ipc."""
    p = claims.factor.params
    shown = {}
    for ipc in p.ipc:
        table = by_seed(claims.factor, ipc)
        how = p.distillation(p.methods[0], ipc)
        name = f"ipc {ipc}, {how.outer_iterations * how.inner_iterations} iterations"
        shown[name] = {p.distillation(m, ipc).factor: percent(table[m].mean(), table[m].std()) for m in p.methods}
    return pd.DataFrame(shown).rename_axis("factor")


def lever_table(claims: Claims) -> pd.DataFrame:
    """Accuracy of every entry of the study `levers`, and what it adds to the one it changes one thing of."""
    table = by_seed(claims.levers, claims.levers.params.ipc[0])
    rows = {
        m: {"test accuracy (%)": percent(table[m].mean(), table[m].std()), "beside": LEVERS.get(m, "–")}
        | {"gain": points(list(table[m] - table[LEVERS[m]])) if m in LEVERS else "–"}
        for m in table.columns
    }
    return pd.DataFrame(rows).T.rename_axis("variant")


# ---- plug-in, transfer ------------------------------------------------------------------------------------------


def plug_in_gains(claims: Claims) -> dict[str, list[float]]:
    """Method → what DREAM's two ingredients add to it, one gain a seed, in the methods study."""
    table = by_seed(claims.methods, claims.methods.params.ipc[0])
    return {without: list(table[with_it] - table[without]) for without, with_it in plug_in_pairs(claims.methods)}


def transfer_gains(claims: Claims) -> dict[tuple[int, str], list[float]]:
    """(ipc, where) → DREAM's lead over IDC, one a seed: on networks the set never met, and without augmentation."""
    rows, found = views(claims.curves), {}
    networks = list(dict.fromkeys(rows.network))
    for ipc in claims.curves.params.ipc:
        asked = {n: by_seed(claims.curves, ipc, n) for n in networks[1:]}
        if "plain" in set(rows.view):
            asked[f"{networks[0]}, no augmentation"] = by_seed(claims.curves, ipc, view="plain")
        found |= {(ipc, name): list(t["dream"] - t[BASELINE]) for name, t in asked.items()}
    return found


def transfer_table(claims: Claims) -> pd.DataFrame:
    """Test accuracy (%) of random images, IDC and DREAM on every network and view, for each ipc."""
    rows, shown = views(claims.curves), []
    for (ipc, network, view), _ in rows.groupby(["ipc", "network", "view"], sort=False):
        table = by_seed(claims.curves, ipc, network, view)
        named = {m: percent(table[m].mean(), table[m].std()) for m in table.columns}
        shown.append({"ipc": ipc, "network": network, "view": view} | named)
    return pd.DataFrame(shown).set_index(["ipc", "network", "view"])


# ---- what it buys -----------------------------------------------------------------------------------------------


def cost_points(claims: Claims) -> pd.DataFrame:
    """Accuracy against operations: mean and deviation over networks, for the sets and along training on all data."""
    table = claims.table("cost")
    keys = ["data", "ipc", "step", "seen", "operations", "stored_bytes"]
    found = table.groupby(keys, sort=False)["accuracy"].agg(["mean", "std"])
    return found.rename(columns={"mean": "accuracy"}).reset_index()


def real_training(claims: Claims, accuracy: float, repeat: int, what: str = "operations") -> float:
    """Operations (or seconds) of training on all data until ``accuracy``, for one network; inf if it never gets there.

    Before its first asked point a network is taken to stand at chance.
    """
    table = claims.table("cost")
    table = table[(table.data == FULL) & (table.repeat == repeat)]
    spent = table.operations if what == "operations" else [_training_s(claims, FULL, s, repeat) for s in table.step]
    chance = 1 / claims.curves.info.num_classes
    return first_reaching({0.0: chance} | dict(zip(spent, table.accuracy, strict=True)), accuracy)


def _training_s(claims: Claims, data: str, step: int, repeat: int) -> float:
    taken = claims.record.get(f"{STUDY}/cost", {}).get("training_s", {})
    return taken.get(f"{data}, step {step}, network {repeat}", float("nan"))


def operations_saved(claims: Claims, ipc: int) -> list[float]:
    """1 − operations on the set / on all data to the same accuracy, for each network; below 0: none saved."""
    table = claims.table("cost")
    rows = table[(table.data != FULL) & (table.ipc == ipc)]
    needed = [real_training(claims, r.accuracy, r.repeat) for r in rows.itertuples()]  # 0: the set is at chance
    return [1 - r / n if n else float("-inf") for r, n in zip(rows.operations, needed, strict=True)]


def cost_table(claims: Claims) -> pd.DataFrame:
    """Training on each set beside all data: images, steps, operations, bytes, seconds, joules, accuracy, break-even."""
    table, shown = cost_points(claims), []
    joules = claims.record.get(f"{STUDY}/cost", {}).get("joules", {})
    repeats = sorted(set(claims.table("cost").repeat))
    for r in table.groupby("data", sort=False).tail(1).itertuples():  # of training on all data, where it ended
        seconds = pd.Series([_training_s(claims, r.data, r.step, k) for k in repeats]).median()
        energy = pd.Series([joules.get(f"{r.data}, step {r.step}, network {k}") for k in repeats], dtype=float).median()
        shown.append(
            {"trained on": r.data, "steps": r.step, "images seen": f"{r.seen:,}", "operations": f"{r.operations:.2e}"}
            | {"stored bytes": f"{r.stored_bytes:,}", "seconds": f"{seconds:.1f}"}
            | {"joules": "not reported" if pd.isna(energy) else f"{energy:.0f}"}
            | {"validation accuracy (%)": percent(r.accuracy, r.std)}
            | {"trainings until it pays": _pays(claims, r.ipc, r.accuracy, seconds) if r.data != FULL else "–"}
        )  # fmt: skip
    return pd.DataFrame(shown).set_index("trained on")


def _pays(claims: Claims, ipc: int, accuracy: float, seconds: float) -> str:
    making = seconds_at(claims, METHOD, ipc)
    reached = pd.Series([real_training(claims, accuracy, k, "seconds") for k in set(claims.table("cost").repeat)])
    count = break_even(max(making.values()), seconds, float(reached.median())) if making else float("nan")
    return "not known" if pd.isna(count) else "never" if count == float("inf") else f"{count:,.0f}"


# ---- pictures ---------------------------------------------------------------------------------------------------


def shown_class(claims: Claims) -> int:
    """The class whose batches are pictured."""
    return read_claims(claims.curves.root).batches.shown


def picked_images(picture: pd.DataFrame, images: Tensor, count: int = 16) -> dict[str, Tensor]:
    """Kind of batch → its first ``count`` images (n, C, H, W) in the picture's order, to look at."""
    return {kind: images[picture[picture[kind] == 1].row.tolist()[:count]] for kind in KINDS}
