"""Intervals: equal to closed forms and scipy, and they cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from evalsuite.stats import (
    Stratum,
    mean_interval,
    paired_difference,
    stratified_difference,
    wilson,
)


@given(n=st.integers(1, 500), part=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipys_and_holds_its_share(n, part, level):
    successes = round(part * n)
    low, high = wilson(successes, n, level)
    known = reference.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert low == pytest.approx(known.low, abs=1e-12)
    assert high == pytest.approx(known.high, abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_says_something_even_when_all_or_none_succeed():
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_a_plain_mean_has_scipys_t_interval(values):
    mean, stderr, low, high = mean_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert stderr == pytest.approx(reference.sem(values), abs=1e-9)
    if stderr > 1e-9:
        known = reference.t.interval(0.95, len(values) - 1, loc=mean, scale=stderr)
        assert (low, high) == pytest.approx(known)


def test_equal_weights_change_nothing_and_one_value_has_no_spread():
    values = [0.2, 0.5, 0.9, 0.4]
    assert mean_interval(values, [7.0] * 4) == pytest.approx(mean_interval(values))
    mean, *rest = mean_interval([0.3])
    assert mean == 0.3
    assert all(math.isnan(one) for one in rest)


def test_a_weighted_mean_is_the_ratio_of_sums_and_its_interval_covers():
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(20, 400, size=(2000, 40)).astype(float)
    truth = 2.0
    bits = bytes_ * (truth + rng.normal(0, 0.5, bytes_.shape))
    covered = 0
    for size, bit in zip(bytes_, bits, strict=True):
        mean, _, low, high = mean_interval(list(bit / size), list(size))
        assert mean == pytest.approx(bit.sum() / size.sum())
        covered += low <= truth <= high
    assert 0.92 < covered / 2000 < 0.97


def test_a_paired_difference_has_its_closed_form():
    a = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    b = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = paired_difference(a, b)
    items = np.var([1.0, 0.5, 0.0, 0.5], ddof=1) / 4
    seeds = np.var([0.5, 0.5], ddof=1) / 2
    assert found.difference == 0.5
    assert found.stderr == pytest.approx(math.sqrt(items + seeds))
    assert found.df == pytest.approx((items + seeds) ** 2 / (items**2 / 3))
    assert (found.seeds, found.items) == (2, 4)
    half = reference.t.ppf(0.975, found.df) * found.stderr
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.probability_better == pytest.approx(reference.t.cdf(0.5 / found.stderr, found.df))


@given(
    st.integers(1, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=seeds, max_size=seeds
        )
    )
)
def test_swapping_the_two_sides_mirrors_the_verdict(rows):
    a = np.array(rows)
    b = a[:, ::-1]
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.difference == pytest.approx(-other.difference)
    assert one.probability_better == pytest.approx(1 - other.probability_better)
    assert one.stderr == pytest.approx(other.stderr)


def test_paired_intervals_cover_a_true_difference_and_do_not_cry_wolf():
    rng = np.random.default_rng(1)
    truth, covered, wolves = 0.05, 0, 0
    for _ in range(1000):
        items = rng.normal(0, 0.3, 60)
        seeds = rng.normal(0, 0.04, (4, 1))
        noise = rng.normal(0, 0.2, (2, 4, 60))
        b = noise[0] + rng.normal(0.5, 0.2, 60)
        a = b - noise[0] + noise[1] + truth + items * 0.3 + seeds
        found = paired_difference(a, b)
        covered += found.low <= truth <= found.high
        wolves += found.high < 0
    assert covered / 1000 > 0.93
    assert wolves / 1000 < 0.01


def test_items_missing_in_one_run_are_left_out_and_counted():
    a = np.array([[1.0, 0.0, np.nan], [1.0, 1.0, 1.0]])
    b = np.zeros((2, 3))
    assert paired_difference(a, b).items == 2
    with pytest.raises(ValueError, match="too few"):
        paired_difference(a[:, 1:], b[:, 1:])
    with pytest.raises(ValueError, match="differ"):
        paired_difference(a, b[:1])


def test_a_constant_difference_is_certain_and_none_is_a_coin_toss():
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3))
    assert paired_difference(ones, zeros).probability_better == 1.0
    assert paired_difference(zeros, ones).probability_better == 0.0
    assert paired_difference(ones, ones).probability_better == 0.5


def test_tasks_with_opposite_effects_do_not_widen_the_whole():
    up = Stratum(a=np.full((2, 80), 0.7), b=np.zeros((2, 80)), factor=0.5)
    down = Stratum(a=np.zeros((2, 80)), b=np.full((2, 80), 0.4), factor=0.5)
    found = stratified_difference([up, down])
    assert (found.difference, found.low, found.high) == pytest.approx((0.15, 0.15, 0.15))


def test_items_that_never_differ_leave_room_for_some_that_do():
    same = np.ones((2, 50))
    found = stratified_difference([Stratum(a=same, b=same, range=1.0)])
    assert found.difference == 0
    assert found.stderr == pytest.approx(math.sqrt(1 / 52 / 50))
    assert found.low < 0 < found.high
    crossed = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]
    assert stratified_difference([Stratum(a=crossed[0], b=crossed[1], range=1.0)]).low < 0


def test_a_weighted_task_has_the_variance_of_a_ratio():
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 1, (1, 30)), rng.normal(1, 1, (1, 30))
    weights = rng.uniform(1, 5, 30)
    found = stratified_difference([Stratum(a=a, b=b, weights=weights)])
    mean, stderr, low, high = mean_interval(list((a - b)[0]), list(weights))
    assert (found.difference, found.stderr) == pytest.approx((mean, stderr))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_of_several_tasks_covers_at_its_level():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        strata = []
        for items, effect in ((60, 0.2), (90, -0.1)):
            base = rng.uniform(0.2, 0.6, (1, items))
            a = rng.random((2, items)) < base + effect
            b = rng.random((2, items)) < base
            strata.append(Stratum(a=a, b=b, factor=0.5, range=1.0))
        found = stratified_difference(strata)
        covered += found.low <= 0.05 <= found.high
    assert 0.93 <= covered / 400 <= 1.0
