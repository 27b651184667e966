"""How sure a number is: intervals for shares, means, ratios and paired differences.

    wilson(8, 10)                    -> (0.49, 0.94)      a share of right answers
    mean_interval([0.2, 0.4, 0.9])   -> mean, stderr, and a t interval
    paired_difference(a, b)          -> which of two mixtures is better, over seeds and items

Intervals say how much the number would move with other items (and seeds) of the same kind.
They know nothing of a biased suite, of dependence between items, or of how often one looked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The mean of a - b over items and seeds, and how sure its sign is."""

    difference: float
    stderr: float
    low: float
    high: float
    df: float
    """Welch-Satterthwaite degrees of freedom; infinite when nothing varies."""
    probability_better: float
    """Probability that a scores higher than b, read from the t distribution."""
    seeds: int
    items: int
    """Items scored in every run; others are left out."""


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share of `n`; stays inside [0, 1], honest at 0 and n."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"wilson: {successes} of {n} is no share")
    z = normal_quantile(level)
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return (0.0 if successes == 0 else low, 1.0 if successes == n else high)


def mean_interval(
    values: Sequence[float], weights: Sequence[float] | None = None, level: float = 0.95
) -> tuple[float, float, float, float]:
    """(mean, stderr, low, high) with a t interval; a ratio estimator when weights are given.

    With weights the mean is sum(w v) / sum(w) and its stderr that of a ratio of two sums over
    items. One value has no spread: stderr, low and high are then NaN.
    """
    n = len(values)
    if n == 0:
        raise ValueError("mean_interval: no values")
    sizes = [1.0] * n if weights is None else [float(weight) for weight in weights]
    total = math.fsum(sizes)
    if len(sizes) != n or total <= 0 or min(sizes) < 0:
        raise ValueError("mean_interval: needs one weight >= 0 per value, not all zero")
    mean = math.fsum(w * v for w, v in zip(sizes, values, strict=True)) / total
    if n == 1:
        return mean, math.nan, math.nan, math.nan
    squares = math.fsum((w * (v - mean)) ** 2 for w, v in zip(sizes, values, strict=True))
    stderr = math.sqrt(n / (n - 1) * squares) / total
    half = t_quantile(level, n - 1) * stderr
    return mean, stderr, mean - half, mean + half


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """The items of one task, scored under two treatments: arrays [seeds, items]."""

    a: ArrayLike
    b: ArrayLike
    weights: ArrayLike | None = None
    """Per item; the task's value is sum(w v) / sum(w). By default all alike."""
    factor: float = 1.0
    """What the task's difference counts in the whole."""
    range: float = 0.0
    """Largest possible difference of one item, where there is one (1 for right or wrong)."""


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """`stratified_difference` of one task: arrays [seeds, items], higher is better.

    An item that is NaN in any run is left out.
    """
    import numpy as np

    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(f"paired difference: shapes {left.shape} and {right.shape} differ")
    whole = ~np.isnan(left - right).any(axis=0)
    return stratified_difference([Stratum(a=left[:, whole], b=right[:, whole])], level=level)


def stratified_difference(strata: Sequence[Stratum], *, level: float = 0.95) -> Difference:
    """Compare two treatments over tasks: sum over tasks of factor x (paired mean difference).

    Items and seeds both vary. Of each task, the items' variance is that of the seed-averaged
    differences, as a ratio estimator (Cochran 1977, section 6.3) when items have weights;
    tasks add up independently. The seeds' variance is that of the whole over seeds, divided
    by their number k. Degrees of freedom follow Welch and Satterthwaite. With one seed nothing
    is known of seeds: the interval is then too narrow for a claim about the treatment.

    n items that never differ do not prove that no item does: where an item's difference has a
    largest value `range`, its variance is taken as at least range^2 / (n + 2), about that of
    one differing item among n + 2.

    Raises ValueError for shapes that differ, NaN, or fewer than two items in a task.
    """
    import numpy as np
    from scipy.special import stdtr

    seeds = np.asarray(strata[0].a).shape[0] if strata else 0
    total, count = np.zeros(seeds), 0
    parts: list[tuple[float, float]] = []
    for stratum in strata:
        left, right = np.asarray(stratum.a, dtype=float), np.asarray(stratum.b, dtype=float)
        if left.shape != right.shape or left.ndim != 2 or left.shape[0] != seeds:
            raise ValueError(f"paired difference: shapes {left.shape} and {right.shape} differ")
        gap, items = left - right, left.shape[1]
        if items < 2 or seeds < 1:
            raise ValueError(f"paired difference: {items} items of {seeds} seeds are too few")
        if np.isnan(gap).any():
            raise ValueError("paired difference: an item without a number cannot be paired")
        size = np.ones(items) if stratum.weights is None else np.asarray(stratum.weights, float)
        per_seed = gap @ size / size.sum()
        spread = (gap.mean(axis=0) - per_seed.mean()) * size / size.mean()
        variance = max(float((spread**2).sum()) / (items - 1), stratum.range**2 / (items + 2))
        parts.append((stratum.factor**2 * variance / items, items - 1))
        total += stratum.factor * per_seed
        count += items
    if seeds > 1:
        parts.append((float(total.var(ddof=1)) / seeds, seeds - 1))
    mean = float(total.mean())
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        sure = 0.5 if mean == 0 else float(mean > 0)
        return Difference(
            difference=mean, stderr=0.0, low=mean, high=mean, df=math.inf,
            probability_better=sure, seeds=seeds, items=count,
        )  # fmt: skip
    df = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    stderr = math.sqrt(variance)
    half = t_quantile(level, df) * stderr
    return Difference(
        difference=mean, stderr=stderr, low=mean - half, high=mean + half, df=df,
        probability_better=float(stdtr(df, mean / stderr)), seeds=seeds, items=count,
    )  # fmt: skip


def normal_quantile(level: float) -> float:
    """Half width, in standard errors, of a normal interval that covers `level`."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def t_quantile(level: float, df: float) -> float:
    """Half width, in standard errors, of a t interval with `df` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))
