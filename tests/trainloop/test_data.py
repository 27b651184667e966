"""Mixing and packing: proportions at every prefix, every token once per epoch, pure functions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from tests.trainloop.conftest import small_stage, tokens_of
from trainloop import data
from trainloop.objectives import load_objective

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(
    lambda sizes: np.array(sizes, dtype=np.int64)
)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), lengths, min_size=1),
    weights=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_proportions_hold_at_every_prefix_within_one_document(sizes, weights, seed):
    mixture = dict(zip("abcd", weights, strict=True))
    names, source, document = data.mixture_order(sizes, mixture, tokens=500, seed=seed)
    read = np.array([sizes[names[s]][d] for s, d in zip(source, document, strict=True)])
    total = sum(mixture[name] for name in names)
    assert read.sum() >= 500
    within = np.searchsorted(np.cumsum(read), 500)
    longest = max(int(s.max()) for s in sizes.values())
    for n, name in enumerate(names):
        mine = np.cumsum(np.where(source == n, read, 0))[:within]
        expected = np.cumsum(read)[:within] * mixture[name] / total
        # Half a document of each source may be ahead or behind its share.
        assert np.all(np.abs(mine - expected) <= longest * (len(names) / 2 + 1))


def test_each_epoch_reads_every_document_once():
    sizes = {"a": np.full(50, 10, dtype=np.int64)}
    _, _, document = data.mixture_order(sizes, {"a": 1.0}, tokens=1000, seed=3)
    assert sorted(document[:50]) == list(range(50))
    assert sorted(document[50:100]) == list(range(50))
    assert list(document[:50]) != list(document[50:100])


def test_adding_a_source_keeps_the_other_sources_order():
    sizes = {"a": np.full(50, 10, dtype=np.int64), "b": np.full(50, 7, dtype=np.int64)}
    _, _, alone = data.mixture_order({"a": sizes["a"]}, {"a": 1.0}, tokens=300, seed=3)
    names, source, both = data.mixture_order(sizes, {"a": 1.0, "b": 1.0}, tokens=500, seed=3)
    of_a = both[source == names.index("a")]
    assert list(of_a[:25]) == list(alone[:25])


def test_how_a_recipe_orders_its_mixture_changes_nothing():
    sizes = {"a": np.full(50, 10, dtype=np.int64), "b": np.full(50, 10, dtype=np.int64)}
    one = data.mixture_order(sizes, {"a": 1.0, "b": 1.0}, tokens=300, seed=3)
    turned = dict(reversed(sizes.items()))
    other = data.mixture_order(turned, {"b": 1.0, "a": 1.0}, tokens=300, seed=3)
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(one[2], other[2])


def test_cut_rows_hold_the_document_stream_without_a_gap(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    stage = small_stage()
    plan = data.plan_batches({"a": tokens}, stage, load_objective("next_token"), seed=5)
    _, _, document = data.mixture_order(
        {"a": tokens.lengths}, {"a": 1.0}, tokens=stage.tokens, seed=5
    )
    stream = np.concatenate(
        [tokens.tokens[tokens.offsets[d] : tokens.offsets[d + 1]] for d in document]
    )
    rows = np.concatenate([plan.batch(step).input_ids.ravel() for step in range(stage.steps)])
    assert np.array_equal(rows, stream[: len(rows)])


def test_labels_are_the_next_token_of_the_same_document_only(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    plan = data.plan_batches({"a": tokens}, small_stage(), load_objective("next_token"), seed=5)
    batch = plan.batch(0)
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    assert np.array_equal(batch.labels[:, :-1], np.where(same, batch.input_ids[:, 1:], -100))
    assert (batch.labels[:, -1] == -100).all()
    starts = np.concatenate([np.ones((4, 1), bool), ~same], axis=1)
    assert (batch.position_ids[starts] == 0).all()


def test_conversations_are_never_cut_and_padding_is_no_target(world, tmp_path):
    tokens = tokens_of(world, tmp_path, "sft")
    stage = small_stage(objective="sft")
    plan = data.plan_batches({"a": tokens}, stage, load_objective("sft"), seed=5)
    length = int(tokens.lengths[0])
    for step in range(stage.steps):
        batch = plan.batch(step)
        for row in batch.segments:
            counts = np.bincount(row[row >= 0])
            assert (counts == length).all()
        assert (batch.labels[batch.segments < 0] == -100).all()


def test_a_batch_is_a_pure_function_of_seed_and_step(world, tmp_path):
    tokens = tokens_of(world, tmp_path)
    make = lambda seed: data.plan_batches(  # noqa: E731
        {"a": tokens}, small_stage(), load_objective("next_token"), seed=seed
    )
    one, again, other = make(1), make(1), make(2)
    assert np.array_equal(one.batch(7).input_ids, again.batch(7).input_ids)
    assert not np.array_equal(one.batch(7).input_ids, other.batch(7).input_ids)


def test_a_source_without_a_target_is_an_error(world, tmp_path):
    file = tmp_path / "user_only.jsonl"
    file.write_text('{"id": "1", "messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UserError, match="no token is a target"):
        data.tokenise(
            "a",
            [file],
            world.tokenizer,
            "tokenizer",
            load_objective("sft"),
            32,
            root=tmp_path,
            data_id="x",
        )


HUSH = "{% for m in messages %}{% if m.content != 'hush' %}{{ m.content }} {% endif %}{% endfor %}"


@pytest.mark.parametrize("hushed", [0, 1, 3])
def test_a_document_of_no_token_is_left_out_of_the_rows_and_counted(hushed, world, tmp_path):
    said = ["hush"] * hushed + ["the cat sat on a mat"] * 5 + ["hush"] * hushed
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": t}]} for n, t in enumerate(said)
    ]
    tokens = hushing(rows, world, tmp_path)
    assert len(tokens.lengths) == 5 and tokens.lengths.min() > 0
    [about] = (tmp_path / "tokens").glob("*/tokens.json")
    assert json.loads(about.read_text())["empty"] == 2 * hushed
    plan = data.plan_batches({"a": tokens}, small_stage(), load_objective("next_token"), seed=5)
    assert plan.piece_length.min() > 0
    batch = plan.batch(0)
    assert (batch.segments >= 0).all() and batch.position_ids.max() < tokens.lengths.max()


def test_a_source_whose_documents_are_all_of_no_token_is_an_error(world, tmp_path):
    rows = [{"id": "1", "messages": [{"role": "user", "content": "hush"}]}]
    with pytest.raises(UserError, match="all its 1 documents become no token at all; look at"):
        hushing(rows, world, tmp_path)


def hushing(rows: list[dict[str, Any]], world: SimpleNamespace, folder: Path) -> data.Tokens:
    """`rows` as tokens, by a chat template that says nothing of a message `hush`."""
    file = folder / "hush.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.chat_template = HUSH
    next_token = load_objective("next_token")
    return data.tokenise("a", [file], tokenizer, "t", next_token, 32, root=folder, data_id="x")
