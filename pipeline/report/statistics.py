"""Statistics of few seeds: mean and spread, paired gains, iterations to an accuracy, a bootstrap, cost of training."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

HOLDS, PARTLY, NOT = "holds", "holds partly", "not seen at this budget"
LEVEL = 0.95  # of bootstrap intervals


def spread(rows: pd.DataFrame, keys: str | list[str], value: str = "accuracy") -> pd.DataFrame:
    """Return mean and sample standard deviation of ``value`` per group, as columns ``value`` and std.

    ``std`` is missing for a group of one row.

    >>> spread(pd.DataFrame({"m": ["a", "a", "b"], "accuracy": [0.5, 0.7, 0.4]}), ["m"]).round(3).values.tolist()
    [[0.6, 0.141], [0.4, nan]]
    """
    return rows.groupby(keys, sort=False)[value].agg(["mean", "std"]).rename(columns={"mean": value})


def by_seed(rows: pd.DataFrame, ipc: int, network: str | None = None, view: str = "protocol") -> pd.DataFrame:
    """Return test accuracy by seed (rows) and method (columns) at ``ipc``, the mean over networks of one kind.

    ``rows`` are those of one study (see ``results.read_results``); ``network`` is the matched one by default.
    """
    chosen = rows.matched if network is None else rows.network == network
    rows = rows[(rows.split == "test") & (rows.ipc == ipc) & (rows.view == view) & chosen]
    table = rows.groupby(["seed", "method"], sort=False)["accuracy"].mean().unstack()
    return table[list(dict.fromkeys(rows.method))].rename_axis(columns=None)


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return validation accuracy by iteration: ipc, method, iteration, accuracy, std over seeds, seconds.

    ``std`` is missing for a single seed. ``seconds`` of distillation are the median over seeds, because the first run
    of a shape includes its compilation.
    """
    groups = rows[rows.split == "validation"].groupby(["ipc", "method", "iteration"], sort=False)
    table = groups.agg(accuracy=("accuracy", "mean"), std=("accuracy", "std"), seconds=("seconds", "median"))
    return table.reset_index()


def curve_by_seed(rows: pd.DataFrame, method: str, ipc: int) -> pd.DataFrame:
    """Return the validation accuracy of one method, seeds (rows) × iterations (columns)."""
    rows = rows[(rows.split == "validation") & (rows.method == method) & (rows.ipc == ipc)]
    return rows.pivot(index="seed", columns="iteration", values="accuracy")


def judge(gains: Sequence[float], margin: float = 0.0) -> str:
    """Return the verdict on "better by more than ``margin``" from one gain per seed.

    It holds if every seed gains more; partly if one does not, but the mean gain exceeds the margin by more than its
    standard error over seeds. Without a true difference, all three seeds gain with probability 1/8, so verdicts from
    three seeds are weak.

    >>> judge([0.01, 0.02, 0.01]), judge([0.04, -0.01, 0.02]), judge([0.03, -0.02, 0.01])
    ('holds', 'holds partly', 'not seen at this budget')
    """
    if min(gains) > margin:
        return HOLDS
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return PARTLY if statistics.fmean(gains) - margin > error else NOT


def combined_verdict(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim of several parts: it holds if all hold, and does not if none holds even partly.

    >>> combined_verdict(["holds", "holds"]), combined_verdict(["holds", "not seen at this budget"])
    ('holds', 'holds partly')
    """
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    return NOT if all(verdict == NOT for verdict in verdicts) else PARTLY


def in_points(gains: Sequence[float]) -> str:
    """Return gains (fractions) in percentage points: mean and range over seeds.

    >>> in_points([0.01, 0.03]), in_points([0.01])
    ('+2.0 points (+1.0 to +3.0)', '+1.0 points (n = 1)')
    """
    mean = sum(gains) / len(gains)
    spread = f"{100 * min(gains):+.1f} to {100 * max(gains):+.1f}" if len(gains) > 1 else "n = 1"
    return f"{100 * mean:+.1f} points ({spread})"


def first_reaching(curve: Mapping[float, float], target: float) -> float:
    """Return the position at which a curve (position → value) first reaches ``target``; inf if never.

    The curve is linear between its points.

    >>> first_reaching({0: 0.5, 10: 0.7, 20: 0.8}, 0.75), first_reaching({0: 0.5, 10: 0.7}, 0.4)
    (15.0, 0.0)
    """
    points = sorted(curve.items())
    if points[0][1] >= target:
        return float(points[0][0])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 >= target:
            return float(x0 + (x1 - x0) * (target - y0) / (y1 - y0))
    return math.inf


def bootstrap(statistic: Callable[[Sequence[int]], float], count: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of ``count`` seeds, over all count^count resamples.

    The resamples are enumerated, not drawn, so that the interval is reproducible; infinite values are allowed.
    ``statistic`` takes the indices of the resampled seeds. Raise ValueError for more than six seeds, which have too
    many resamples to enumerate.

    >>> bootstrap(lambda drawn: [1.0, 2.0, 3.0][drawn[0]], 3)
    (1.0, 3.0)
    """
    if not 1 <= count <= 6:
        raise ValueError(f"a bootstrap over {count} seeds cannot be enumerated; give 1 to 6")
    values = [statistic(drawn) for drawn in itertools.product(range(count), repeat=count)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)


def share_of_iterations(slow: pd.DataFrame, fast: pd.DataFrame) -> tuple[float, float, float]:
    """Return the share of ``slow``'s iterations after which ``fast`` reaches its final accuracy, and a 95 % interval.

    Both are accuracies, seeds (rows) × iterations (columns). Means over seeds are compared; the interval resamples the
    seeds of both jointly. The share is 0 if ``fast`` starts at that accuracy, and inf if it never reaches it.

    >>> slow = pd.DataFrame([[0.4, 0.6], [0.4, 0.6]], columns=[0, 80])
    >>> fast = pd.DataFrame([[0.5, 0.7], [0.5, 0.7]], columns=[0, 80])
    >>> share_of_iterations(slow, fast)  # 0.6 is halfway from 0.5 to 0.7
    (0.5, 0.5, 0.5)
    """
    if len(slow) != len(fast):
        raise ValueError(f"the curves have {len(slow)} and {len(fast)} seeds; give the same seeds to both")
    total = max(slow.columns)

    def share(drawn: Sequence[int]) -> float:
        rows = list(drawn)
        target = float(slow.iloc[rows][total].mean())
        return round(first_reaching(fast.iloc[rows].mean().to_dict(), target) / total, 12)

    return (share(range(len(slow))), *bootstrap(share, len(slow)))


def judge_share(share: float, low: float, high: float, margin: float = 0.0) -> str:
    """Return the verdict on "in fewer iterations, by more than ``margin``".

    It holds if the whole interval is below 1 − ``margin``.

    >>> judge_share(0.3, 0.1, 0.8), judge_share(0.9, 0.4, 1.2), judge_share(1.2, 0.9, float("inf"))
    ('holds', 'holds partly', 'not seen at this budget')
    """
    if high < 1 - margin:
        return HOLDS
    return PARTLY if share < 1 - margin else NOT


def real_training(
    costs: pd.DataFrame, accuracy: float, repeat: int, chance: float, cost_column: str = "operations"
) -> float:
    """Return the operations or seconds one network needs on all training images to reach ``accuracy``; inf if never.

    costs: see ``Claims.costs``.
    chance: accuracy before training.
    cost_column: "operations" or "seconds".
    """
    rows = costs[(costs.ipc == 0) & (costs.repeat == repeat)]
    return first_reaching({0.0: chance} | dict(zip(rows[cost_column], rows.accuracy, strict=True)), accuracy)


def operations_saved(costs: pd.DataFrame, ipc: int, chance: float) -> list[float]:
    """Return 1 − operations on the set / on all images to the same accuracy, per network; negative if none saved."""
    saved = []
    for row in costs[costs.ipc == ipc].itertuples():
        needed = real_training(costs, row.accuracy, row.repeat, chance)
        saved.append(1 - row.operations / needed if needed else -math.inf)  # 0: the set is at chance
    return saved


def break_even(making: float, with_set: float, without: float) -> float:
    """Return the number of trainings that save the cost of ``making`` a set; inf if a training saves nothing.

    >>> break_even(100.0, 2.0, 12.0), break_even(100.0, 2.0, 1.0)
    (10.0, inf)
    """
    return making / (without - with_set) if without > with_set else math.inf
