"""Mixing and packing: proportions at every prefix, nothing cut that fits a row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainloop import packing

sizes_of = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(
    lambda sizes: np.array(sizes, dtype=np.int64)
)
weight = st.floats(0.01, 1)


def ones(count: int) -> packing.Ints:
    """`count` documents that count one each."""
    return np.ones(count, dtype=np.int64)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1),
    weights=st.lists(weight, min_size=8, max_size=8),
    seed=st.integers(0, 2**31),
)
def test_shares_of_documents_hold_at_every_prefix(counts, weights, seed):
    mixture = dict(zip("abcdefgh", weights, strict=True))
    sizes = {name: ones(count) for name, count in counts.items()}
    names, source, document = packing.mixture_order(sizes, mixture, amount=200, seed=seed)
    assert len(source) == 200
    assert all(0 <= d < counts[names[s]] for s, d in zip(source, document, strict=True))
    total = sum(mixture[name] for name in names)
    allowed = 2.0 if len(names) > 2 else 0.6
    for number, name in enumerate(names):
        drawn = np.cumsum(source == number)
        expected = np.arange(1, 201) * mixture[name] / total
        assert np.abs(drawn - expected).max() <= allowed


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), sizes_of, min_size=1),
    weights=st.lists(weight, min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_shares_of_tokens_hold_at_every_prefix_to_two_documents(sizes, weights, seed):
    mixture = dict(zip("abcd", weights, strict=True))
    names, source, unit = packing.mixture_order(sizes, mixture, amount=500, seed=seed)
    read = np.array([sizes[names[s]][d] for s, d in zip(source, unit, strict=True)])
    assert read.sum() >= 500 > read[:-1].sum()
    total = sum(mixture[name] for name in names)
    longest = max(int(each.max()) for each in sizes.values())
    for number, name in enumerate(names):
        mine = np.cumsum(np.where(source == number, read, 0))
        expected = np.cumsum(read) * mixture[name] / total
        assert np.abs(mine - expected).max() <= 2 * longest


def test_many_sources_that_would_fall_due_together_do_not_wait_for_one_another():
    sizes = {"big": ones(60)} | {f"small{n:02}": ones(10) for n in range(50)}
    weights = {name: 0.5 if name == "big" else 0.01 for name in sizes}
    names, source, _ = packing.mixture_order(sizes, weights, amount=100, seed=0)
    big = np.cumsum(source == names.index("big"))
    assert np.abs(big - np.arange(1, 101) / 2).max() <= 0.5
    assert np.bincount(source).tolist() == [50, *[1] * 50]


def test_each_epoch_reads_every_document_once_in_a_new_order():
    sizes = {"a": np.full(50, 10, dtype=np.int64)}
    _, _, document = packing.mixture_order(sizes, {"a": 1.0}, amount=1000, seed=3)
    assert sorted(document[:50]) == list(range(50))
    assert sorted(document[50:100]) == list(range(50))
    assert list(document[:50]) != list(document[50:100])


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), sizes_of, min_size=1),
    weights=st.lists(weight, min_size=4, max_size=4),
    amount=st.integers(1, 300),
    more=st.integers(0, 3000),
)
def test_a_longer_order_begins_like_a_shorter_one(sizes, weights, amount, more):
    mixture = dict(zip("abcd", weights, strict=True))
    _, source, unit = packing.mixture_order(sizes, mixture, amount=amount, seed=3)
    _, longer, units = packing.mixture_order(sizes, mixture, amount=amount + more, seed=3)
    assert np.array_equal(source, longer[: len(source)])
    assert np.array_equal(unit, units[: len(unit)])


def test_two_streams_are_merged_no_further_than_both_are_known():
    short, long = ((ones(n), np.full(n, number), np.arange(n)) for number, n in ((0, 2), (1, 9)))
    _, source, _ = packing._merged(short, 0.5, long, 0.5)
    assert source.tolist() == [0, 1, 0, 1], "a third of the first would come next"


def test_adding_a_source_keeps_the_other_sources_order():
    sizes = {"a": np.full(50, 10, dtype=np.int64), "b": np.full(50, 7, dtype=np.int64)}
    _, _, alone = packing.mixture_order({"a": sizes["a"]}, {"a": 1.0}, amount=300, seed=3)
    names, source, both = packing.mixture_order(sizes, {"a": 1.0, "b": 1.0}, amount=500, seed=3)
    of_a = both[source == names.index("a")]
    assert list(of_a[:25]) == list(alone[:25])


def test_how_a_recipe_orders_its_mixture_changes_nothing():
    sizes = {"a": np.full(50, 10, dtype=np.int64), "b": np.full(50, 10, dtype=np.int64)}
    one = packing.mixture_order(sizes, {"a": 1.0, "b": 1.0}, amount=300, seed=3)
    turned = dict(reversed(sizes.items()))
    other = packing.mixture_order(turned, {"b": 1.0, "a": 1.0}, amount=300, seed=3)
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(one[2], other[2])


@given(lengths=sizes_of, row_length=st.integers(2, 30))
def test_only_documents_longer_than_a_row_are_cut_and_no_token_is_lost(lengths, row_length):
    document, start, length = packing.cut_long(lengths, row_length)
    assert length.max() <= row_length and length.min() >= 1
    for number, whole in enumerate(lengths.tolist()):
        mine = document == number
        assert mine.sum() == max(1, -(-whole // row_length))
        # Pieces follow one another from the first token to the last.
        ends = (start + length)[mine]
        assert ends[-1] == whole and start[mine].tolist() == [0, *ends[:-1]]
        if row_length > 2 and whole > 1:
            assert length[mine].min() > 1, "a token alone has nothing that predicts it"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=200, max_size=400),
    open_rows=st.integers(1, 6),
    rows=st.integers(1, 4),
)
def test_rows_hold_whole_units_and_a_prefix_less_at_most_the_open_rows(sizes, open_rows, rows):
    asked = np.array(sizes, dtype=np.int64)
    units, starts = packing.best_fit(asked, 20, open_rows=open_rows, rows=rows)
    assert len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == len(units)
    assert len(set(units.tolist())) == len(units)
    for first, last in pairwise(starts):
        assert 0 < asked[units[first:last]].sum() <= 20
    # What comes before the last unit read, and is not in a row, fits into the open ones.
    waiting = np.setdiff1d(np.arange(units.max()), units)
    assert asked[waiting].sum() <= open_rows * 20


def test_the_example_of_ding_et_al_truncates_one_document_instead_of_three():
    # Figure 1 of arXiv:2404.10830: rows of 8 tokens, documents of 14, 7, 5, 2 and 3.
    lengths = np.array([14, 7, 5, 2, 3], dtype=np.int64)
    document, _, length = packing.cut_long(lengths, 8)
    # A document of one token more, which fits only beside the 7, fills the last row.
    packed = np.array([*length, 1], dtype=np.int64)
    units, starts = packing.best_fit(packed, 8, open_rows=4, rows=4)
    rows = [sorted(packed[units[first:last]].tolist()) for first, last in pairwise(starts)]
    assert sorted(rows) == [[1, 7], [2, 6], [3, 5], [8]]
    assert np.count_nonzero(np.bincount(document) > 1) == 1
    # End to end, the same four rows cut the documents that lie across their borders.
    ends = np.cumsum(lengths)
    assert np.count_nonzero((ends - lengths) // 8 != (ends - 1) // 8) == 3


@pytest.mark.parametrize(("open_rows", "fill"), [(4, 0.97), (64, 0.99)])
def test_rows_are_nearly_full(open_rows, fill):
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.lognormal(5.5, 1.0, 20_000)).astype(np.int64)
    _, _, length = packing.cut_long(lengths, 2048)
    rows = int(length.sum()) // 2048 - open_rows - 1
    units, _ = packing.best_fit(length, 2048, open_rows=open_rows, rows=rows)
    assert length[units].sum() >= fill * rows * 2048
