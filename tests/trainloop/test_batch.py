"""Flat batches: what a token sees and predicts, and pieces that are batches of whole documents."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainloop.batch import Batch, Tree, batch_of, micro_batches

token = st.integers(0, 99)


@st.composite
def documents(draw: Any) -> Tree:
    """A plain text, or a prompt with one to three branches."""
    prompt = draw(st.lists(token, max_size=5))
    branches = draw(st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=3))
    targets = tuple(
        tuple(draw(st.lists(st.booleans(), min_size=len(b), max_size=len(b)))) for b in branches
    )
    return Tree(tuple(prompt), tuple(map(tuple, branches)), targets)


def numbered(trees: list[Tree]) -> list[Tree]:
    """The trees with numbers from which sequences and targets can be told."""
    out = []
    for number, tree in enumerate(trees):
        asked = [sum(t[0 if tree.prompt else 1 :]) for t in tree.targets]
        out.append(
            Tree(
                tree.prompt,
                tree.branches,
                tree.targets,
                {"tree": [float(number)] * len(asked)},
                {"at": [[number + n / 100 for n in range(count)] for count in asked]},
            )
        )
    return out


batches = st.lists(documents(), min_size=1, max_size=12).map(numbered)


def same(one: Batch, other: Batch) -> bool:
    """Whether every array, and its kind, is equal."""
    for each in fields(Batch):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if isinstance(a, dict):
            if a.keys() != b.keys() or not all(np.array_equal(a[k], b[k]) for k in a):
                return False
        elif each.name != "padding" and (a.dtype != b.dtype or not np.array_equal(a, b)):
            return False
    return True


@settings(max_examples=100, deadline=None)
@given(batches)
def test_a_token_sees_its_document_as_if_it_were_alone(trees):
    batch = batch_of(trees)
    number = 0
    for tree in trees:
        for branch in tree.branches:
            end = int(batch.last[number]) + 1
            [segment] = batch.segments[batch.segments[:, 1] == end]
            start, _, prefix_start, prefix_end = segment
            seen = [*range(prefix_start, prefix_end), *range(start, end)]
            assert batch.input_ids[seen].tolist() == [*tree.prompt, *branch]
            assert batch.position_ids[seen].tolist() == list(range(len(seen)))
            number += 1
    assert number == batch.sequences and len(trees) == batch.documents
    assert batch.tokens == sum(len(t.prompt) + sum(map(len, t.branches)) for t in trees)
    # Each token lies in one segment, prompts in ones of their own.
    assert np.array_equal(batch.segments[1:, 0], batch.segments[:-1, 1])
    assert batch.segments[0, 0] == 0 and batch.segments[-1, 1] == batch.tokens


@settings(max_examples=100, deadline=None)
@given(batches)
def test_a_target_is_predicted_by_the_token_before_it_in_its_own_sequence(trees):
    batch = batch_of(trees)
    expected = []
    sequence = 0
    for number, tree in enumerate(trees):
        for branch, wanted in zip(tree.branches, tree.targets, strict=True):
            whole = [*tree.prompt, *branch]
            for at, (label, asked) in enumerate(zip(branch, wanted, strict=True)):
                place = len(tree.prompt) + at
                if asked and place:
                    expected.append((number, sequence, label, whole[place - 1], place - 1))
            sequence += 1
    found = zip(
        batch.document[batch.sequence].tolist(),
        batch.sequence.tolist(),
        batch.labels.tolist(),
        batch.input_ids[batch.predict_from].tolist(),
        batch.position_ids[batch.predict_from].tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert batch.target_tokens == len(expected)
    at = batch.of_target["at"]
    assert np.array_equal(np.floor(at), batch.of_sequence["tree"][batch.sequence])


def test_a_prompt_is_in_the_batch_once_for_all_that_follows_it():
    pair = Tree((5, 6, 7), ((1, 2), (3,)), ((True, True), (True,)))
    batch = batch_of([pair, Tree((), ((8, 9),), ((True, True),))])
    assert batch.input_ids.tolist() == [5, 6, 7, 1, 2, 3, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert batch.segments.tolist() == [[0, 3, 0, 0], [3, 5, 0, 3], [5, 6, 0, 3], [6, 8, 6, 6]]
    # The first token of either answer is predicted by the prompt's last.
    assert batch.predict_from.tolist() == [2, 3, 2, 6]
    assert batch.labels.tolist() == [1, 2, 3, 9]


def test_a_batch_of_nothing_is_empty():
    batch = batch_of([])
    assert (batch.tokens, batch.sequences, batch.documents, batch.target_tokens) == (0, 0, 0, 0)
    assert batch.segments.shape == (0, 4)


@settings(max_examples=150, deadline=None)
@given(trees=batches, ranks=st.integers(1, 4), tokens=st.none() | st.integers(1, 60))
def test_micro_batches_share_out_every_document_once_whatever_the_ranks_and_size(
    trees, ranks, tokens
):
    batch = batch_of(trees)
    shares = [micro_batches(batch, rank=r, ranks=ranks, tokens=tokens) for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "as many backward passes on every rank"
    read: list[int] = []
    for piece in (piece for share in shares for piece in share):
        numbers = piece.of_sequence["tree"][np.searchsorted(piece.document, range(piece.documents))]
        mine = [int(number) for number in numbers]
        assert same(piece, batch_of([trees[number] for number in mine]))
        if piece.padding:
            assert piece.documents == 1
            continue
        read += mine
        assert mine == sorted(mine)
        assert tokens is None or piece.tokens <= tokens or piece.documents == 1
    assert sorted(read) == list(range(len(trees)))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=4, max_size=60),
    ranks=st.integers(1, 4),
    tokens=st.none() | st.integers(50, 200),
)
def test_pieces_differ_by_one_document_at_most(lengths, ranks, tokens):
    batch = batch_of([Tree((), (range(n),), ([True] * n,)) for n in lengths])
    pieces = [
        0 if piece.padding else piece.tokens
        for rank in range(ranks)
        for piece in micro_batches(batch, rank=rank, ranks=ranks, tokens=tokens)
    ]
    assert max(pieces) - min(pieces) <= max(lengths)
    if tokens is not None:
        # Documents of which two never fit together need a piece each; others half-fill one.
        assert len(pieces) <= ranks + 9 / 8 * max(2 * sum(lengths) / tokens, 1) + ranks


def test_the_pieces_of_one_rank_without_a_limit_are_the_batch_itself():
    batch = batch_of([Tree((), ((1, 2, 3),), ((True,) * 3,))] * 3)
    [piece] = micro_batches(batch, rank=0, ranks=1, tokens=None)
    assert piece is batch


def test_a_rank_short_of_documents_gets_padding_and_keeps_step():
    batch = batch_of([Tree((), (range(n),), ([True] * n,)) for n in (9, 4, 7)])
    shares = [micro_batches(batch, rank=rank, ranks=2, tokens=9) for rank in range(2)]
    assert [[piece.padding for piece in share] for share in shares] == [
        [False, False],
        [False, True],
    ]
    assert shares[1][1].tokens == 4


@pytest.mark.parametrize(
    "tree",
    [
        Tree((1,), (), ()),
        Tree((1,), ((),), ((),)),
        Tree((1,), ((2, 3),), ((True,),)),
        Tree((), ((2, 3),), ((True, True),), {}, {"old": [[0.1, 0.2]]}),
        Tree((1,), ((2, 3),), ((True, True),), {"score": [1.0, 2.0]}),
    ],
    ids=["no branch", "empty branch", "flag missing", "value of no target", "value of no branch"],
)
def test_a_tree_that_is_none_is_caught(tree):
    with pytest.raises(AssertionError):
        batch_of([tree])
