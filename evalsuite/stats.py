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


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """Compare two treatments scored on the same items: arrays [seeds, items], higher is better.

    Items and seeds both vary, so stderr = sqrt(var_items / n + var_seeds / k), where var_items
    is the variance over items of the difference averaged over seeds, and var_seeds that over
    seeds of the difference averaged over items. With one seed nothing is known of seeds and
    only items count: the interval is then too narrow for a claim about the treatment.
    An item that is NaN in any run is left out. Raises ValueError for shapes that differ or
    for fewer than two common items.
    """
    import numpy as np
    from scipy.special import stdtr

    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(f"paired_difference: shapes {left.shape} and {right.shape} differ")
    gap = left - right
    gap = gap[:, ~np.isnan(gap).any(axis=0)]
    seeds, items = gap.shape
    if items < 2 or seeds < 1:
        raise ValueError(f"paired_difference: {items} common items of {seeds} seeds are too few")
    mean = float(gap.mean())
    parts = [(float(gap.mean(axis=0).var(ddof=1)) / items, items - 1)]
    if seeds > 1:
        parts.append((float(gap.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        sure = 0.5 if mean == 0 else float(mean > 0)
        return Difference(
            difference=mean, stderr=0.0, low=mean, high=mean, df=math.inf,
            probability_better=sure, seeds=seeds, items=items,
        )  # fmt: skip
    df = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    stderr = math.sqrt(variance)
    half = t_quantile(level, df) * stderr
    return Difference(
        difference=mean, stderr=stderr, low=mean - half, high=mean + half, df=df,
        probability_better=float(stdtr(df, mean / stderr)), seeds=seeds, items=items,
    )  # fmt: skip


def normal_quantile(level: float) -> float:
    """Half width, in standard errors, of a normal interval that covers `level`."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def t_quantile(level: float, df: float) -> float:
    """Half width, in standard errors, of a t interval with `df` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))
