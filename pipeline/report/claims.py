"""How a claim is judged from few seeds: paired gains, curves that cross, and a bootstrap over seeds."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

HOLDS, PARTLY, NOT = "holds", "holds partly", "not seen at this budget"


def judge(gains: Sequence[float]) -> str:
    """The verdict on "better by more than nothing" from one gain a seed.

    It holds when every seed gains; partly when one does not, but the mean gain is above its standard error over seeds;
    it does not otherwise, be it for a loss or for a difference too small to be seen. Without a true difference three
    seeds all gain once in eight times: a verdict from three seeds is no more than that.

    >>> judge([0.01, 0.02, 0.01]), judge([0.04, -0.01, 0.02]), judge([0.03, -0.02, 0.01])
    ('holds', 'holds partly', 'not seen at this budget')
    """
    if min(gains) > 0:
        return HOLDS
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return PARTLY if statistics.fmean(gains) > error else NOT


def together(verdicts: Sequence[str]) -> str:
    """One verdict of several parts: it holds when all hold, does not when none holds even partly.

    >>> together(["holds", "holds"]), together(["holds", "not seen at this budget"])
    ('holds', 'holds partly')
    """
    if all(v == HOLDS for v in verdicts):
        return HOLDS
    return NOT if all(v == NOT for v in verdicts) else PARTLY


def first_reaching(curve: Mapping[float, float], target: float) -> float:
    """Where a curve (position → value), drawn straight between its points, first reaches ``target``; inf if never.

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


def bootstrap(statistic: Callable[[Sequence[int]], float], count: int, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a statistic of ``count`` seeds, over all count^count ways to draw them anew.

    Nothing is random, so that the interval is the same from run to run; infinite values are allowed. ``statistic`` is
    given the drawn seeds' numbers. Raises ValueError for more than six seeds, whose draws are too many to list.

    >>> bootstrap(lambda drawn: [1.0, 2.0, 3.0][drawn[0]], 3)
    (1.0, 3.0)
    """
    if not 1 <= count <= 6:
        raise ValueError(f"a bootstrap over {count} seeds cannot be listed; give 1 to 6")
    values = [statistic(drawn) for drawn in itertools.product(range(count), repeat=count)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def share_of_iterations(slow: pd.DataFrame, fast: pd.DataFrame) -> tuple[float, float, float]:
    """Of the iterations ``slow`` took to its final accuracy, the share ``fast`` needs for as much; with its interval.

    Both are accuracies, a row a seed and a column an iteration. Means over seeds are compared; the interval draws the
    seeds of both anew together. 0 means that ``fast`` starts that high, inf that it never gets there.

    >>> slow = pd.DataFrame([[0.4, 0.6], [0.4, 0.6]], columns=[0, 80])
    >>> fast = pd.DataFrame([[0.5, 0.7], [0.5, 0.7]], columns=[0, 80])
    >>> share_of_iterations(slow, fast)  # 0.6 is half way from 0.5 to 0.7
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


def judge_share(share: float, low: float, high: float) -> str:
    """The verdict on "in fewer iterations": it holds when the whole interval lies below 1.

    >>> judge_share(0.3, 0.1, 0.8), judge_share(0.9, 0.4, 1.2), judge_share(1.2, 0.9, float("inf"))
    ('holds', 'holds partly', 'not seen at this budget')
    """
    if high < 1:
        return HOLDS
    return PARTLY if share < 1 else NOT


def break_even(making: float, with_it: float, without: float) -> float:
    """After how many trainings what was spent on ``making`` is saved; inf when a training saves nothing.

    >>> break_even(100.0, 2.0, 12.0), break_even(100.0, 2.0, 1.0)
    (10.0, inf)
    """
    return making / (without - with_it) if without > with_it else math.inf
