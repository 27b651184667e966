"""From rewards to advantages: numpy alone.

    group_advantages([1, 0, 0, 0], "centred")        -> [.75, -.25, -.25, -.25]
    group_advantages([1, 0, 0, 0], "leave_one_out")  -> [1, -1/3, -1/3, -1/3]
    gae([0, 1], [.5, .5], lengths=[2], gamma=1, lam=.95)  -> [.475, .5]

A group is what one prompt's answers got. What these numbers cannot say: whether a reward is
worth having. A group whose rewards are all equal teaches nothing: its advantages are exactly 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-8
"""Rewards that differ by no more count as equal; `standardised` would make much of it."""
How = Literal["standardised", "centred", "leave_one_out"]


def group_advantages(rewards: npt.ArrayLike, how: How) -> Floats:
    """Advantages [K] of one prompt's answers, whose rewards are [K].

    standardised: (r - mean) / standard deviation with K - 1 (GRPO: Shao et al. 2024, who leave
    open which deviation; TRL takes this one). centred: r - mean (Dr. GRPO: Liu et al. 2025).
    leave_one_out: r - mean of the others (RLOO: Ahmadian et al. 2024), which is K / (K - 1) times
    `centred`. All zero where the rewards are all equal, but for rounding, as with one answer.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if len(r) < 2 or np.ptp(r) <= ROUNDING * max(1.0, np.abs(r).max()):
        return np.zeros(len(r))
    centred: Floats = r - r.mean()
    if how == "standardised":
        return centred / r.std(ddof=1)
    if how == "leave_one_out":
        return centred * (len(r) / (len(r) - 1))
    return centred


def gae(
    rewards: npt.ArrayLike, values: npt.ArrayLike, *, lengths: Any, gamma: float, lam: float
) -> Floats:
    """Generalised advantage estimates [N] of sequences that lie end to end (Schulman et al. 2016).

    `rewards` and `values` are [N], per token written; `lengths` [S] sum to N. After a sequence's
    last token nothing follows, so the value there is 0:
    A(t) = r(t) + gamma V(t + 1) - V(t) + gamma lam A(t + 1).
    """
    r, v = np.asarray(rewards, dtype=np.float64), np.asarray(values, dtype=np.float64)
    sizes = np.asarray(lengths, dtype=np.int64)
    assert len(r) == len(v) == sizes.sum(), (len(r), len(v), sizes.sum())
    if not len(r):
        return np.zeros(0)
    ends = np.cumsum(sizes)
    after = np.append(v[1:], 0.0)
    after[ends[sizes > 0] - 1] = 0.0
    delta = r + gamma * after - v
    found = delta.copy()
    for back in range(2, int(sizes.max()) + 1):  # all sequences at once, from their ends
        at = ends[sizes >= back] - back
        found[at] += gamma * lam * found[at + 1]
    return found


def whitened(numbers: npt.ArrayLike) -> Floats:
    """Shifted to mean 0 and scaled to variance 1 (with N - 1); zeros where N is below 2."""
    x = np.asarray(numbers, dtype=np.float64)
    if len(x) < 2:
        return np.zeros(len(x))
    shifted: Floats = x - x.mean()
    return shifted / np.sqrt(x.var(ddof=1) + 1e-8)


def k3(logprobs: npt.ArrayLike, reference: npt.ArrayLike) -> Floats:
    """Per token, an unbiased and never negative estimate of KL(policy || reference), in nats.

    exp(d) - d - 1 with d = reference - logprobs, of tokens that the policy drew (Schulman 2020,
    "Approximating KL divergence").
    """
    d = np.asarray(reference, dtype=np.float64) - np.asarray(logprobs, dtype=np.float64)
    return np.expm1(d) - d
