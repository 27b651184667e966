"""Tokens on disk and plans: nothing lost in silence, every document as often as asked, pure."""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from tests.trainloop.conftest import tokens_of
from tests.trainloop.test_batch import same
from trainloop import data
from trainloop.objectives import Objective, load_objective
from trainloop.records import Stage

COMMON = {"name": "pretrain", "mixture": {"a": 1.0}, "sequence_length": 32, "learning_rate": 1e-2}


def spelled(kind: str, **changes: Any) -> Objective:
    """An objective whose documents spell their own token ids, e.g. {"prompt": [1, 2], ...}."""

    def encode(rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[data.Tree]:
        for row in rows:
            branches = tuple(row["branches"])
            asked = [[wanted != "prompt"] * len(branch) for branch in branches for wanted in [kind]]
            yield data.Tree(row.get("prompt", ()), branches, row.get("targets") or tuple(asked))

    settings: dict[str, Any] = {"name": "spelled", "version": 1, "documents": kind}
    settings |= {"encode": encode, "loss": None, "total": None}
    return Objective(**(settings | changes))


def tokenised(
    folder: Path, rows: list[dict[str, Any]], objective: Objective, length: int = 8, name: str = "a"
) -> data.Tokens:
    """The rows as tokens; each call's rows are other data."""
    folder.mkdir(exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    file = folder / f"{name}.jsonl"
    file.write_text(content)
    return data.tokenise(
        name, [file], None, "none", objective, length, root=folder, data_id=content
    )


def in_memory(name: str, lengths: list[int], parts: int = 1) -> data.Tokens:
    """A source of texts (or pairs) of so many tokens; a token's id is its place in the source."""
    total = sum(lengths)
    edges = np.cumsum([0, *lengths])
    if parts == 3:
        starts = edges[:-1, None] + np.arange(3)
        edges = np.array([*starts.ravel(), total])
    targets = np.ones(total, dtype=np.bool_)
    if parts == 3:
        targets[edges[:-1:3]] = False
    return data.Tokens(
        source=name,
        id=f"id of {name}",
        tokens=np.arange(total, dtype=np.uint32),
        targets=targets,
        offsets=edges.astype(np.int64),
        parts=parts,
        too_long=0,
        dropped={},
    )


def packed(**changes: Any) -> Stage:
    """A stage of 12 steps whose batch counts tokens."""
    settings: dict[str, Any] = {"objective": "next_token", "tokens": 12 * 128, "batch_tokens": 128}
    return Stage(**(COMMON | settings | changes))


def counting(**changes: Any) -> Stage:
    """A stage whose batch counts documents."""
    return Stage(**(COMMON | {"objective": "sft", "batch": 4} | changes))


next_token, sft = load_objective("next_token"), load_objective("sft")
texts = st.lists(st.integers(1, 40), min_size=1, max_size=40)


# Plans of packed rows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.dictionaries(st.sampled_from("abc"), texts, min_size=1),
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    length=st.integers(3, 32),
    rows=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_packed_batches_hold_whole_documents_in_the_mixtures_shares(
    lengths, weights, length, rows, seed
):
    sources = {name: in_memory(name, sizes) for name, sizes in lengths.items()}
    mixture = {name: w for name, w in zip("abc", weights, strict=True) if name in sources}
    size = length * rows
    stage = packed(
        mixture=mixture,
        tokens=6 * size,
        sequence_length=length,
        batch_tokens=size,
        score_every=None,
    )
    plan = data.plan_batches(sources, stage, next_token, seed=seed)
    assert plan.steps == 6
    names = [tokens.source for tokens in plan.sources]
    read = np.zeros(len(names))
    for step in range(plan.steps):
        batch = plan.batch(step)
        assert 0 < batch.tokens <= size
        at = 0
        for (name, document), (first, end, *_) in zip(
            plan.documents(step), batch.segments.tolist(), strict=True
        ):
            tokens = sources[name]
            start = batch.input_ids[first] - tokens.offsets[document]
            piece = tokens.tree(document, start, end - first).branches[0]
            assert batch.input_ids[first:end].tolist() == piece and end - first <= length
            if tokens.lengths[document] <= length:
                assert len(piece) == tokens.lengths[document], "a document that fits is whole"
            assert first == at
            at = end
            read[names.index(name)] += end - first
        share = np.array([mixture[name] for name in names]) / sum(mixture.values())
        # One batch of open rows, and what the order itself may be off by.
        assert np.abs(read - share * read.sum()).max() <= size + 2 * length
    for name, count in zip(names, read, strict=True):
        assert plan.epochs[name] == pytest.approx(count / len(sources[name].tokens))
    assert plan.tokens(plan.steps) == read.sum()


def test_realised_shares_stay_within_one_batch_at_any_step():
    rng = np.random.default_rng(0)
    sources = {
        name: in_memory(name, rng.integers(2, longest, 400).tolist())
        for name, longest in (("long", 300), ("short", 12), ("middle", 60))
    }
    mixture = {"long": 0.6, "short": 0.3, "middle": 0.1}
    stage = packed(mixture=mixture, tokens=60 * 512, sequence_length=64, batch_tokens=512)
    plan = data.plan_batches(sources, stage, next_token, seed=1)
    read: Counter[str] = Counter()
    for step in range(plan.steps):
        batch = plan.batch(step)
        for (name, _), (first, end, *_) in zip(
            plan.documents(step), batch.segments.tolist(), strict=True
        ):
            read[name] += end - first
        for name, share in mixture.items():
            assert abs(read[name] - share * read.total()) <= 512
    assert read.total() >= 0.97 * stage.tokens


def test_a_longer_stage_begins_with_the_same_batches():
    sources = {"a": in_memory("a", [5, 9, 40, 3, 17] * 9), "b": in_memory("b", [7] * 30)}
    mixture = {"a": 1.0, "b": 2.0}
    short, long = (
        data.plan_batches(sources, packed(mixture=mixture, tokens=n * 128), next_token, seed=4)
        for n in (5, 30)
    )
    assert all(same(short.batch(step), long.batch(step)) for step in range(5))


def test_pairs_may_be_packed_too():
    tokens = in_memory("a", [6, 9, 12, 5], parts=3)
    preferences = spelled("pair")
    plan = data.plan_batches({"a": tokens}, packed(), preferences, seed=0)
    batch = plan.batch(0)
    trees = [tokens.tree(document) for _, document in plan.documents(0)]
    assert same(batch, data.batch_of(trees)) and batch.sequences == 2 * batch.documents


# Plans of whole documents


@settings(max_examples=60, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from("abc"), st.integers(1, 20), min_size=1),
    times=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    epochs=st.integers(1, 3),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_document_is_read_as_often_as_asked(counts, times, epochs, batch, seed):
    sources = {name: in_memory(name, [3] * count) for name, count in counts.items()}
    mixture = {n: float(w) for n, w in zip("abc", times, strict=True) if n in sources}
    stage = counting(mixture=mixture, epochs=epochs, batch=batch)
    plan = data.plan_batches(sources, stage, sft, seed=seed)
    asked = {name: int(mixture[name]) * epochs for name in sources}
    total = sum(asked[name] * count for name, count in counts.items())
    assert plan.steps == -(-total // batch)
    read = [each for step in range(plan.steps) for each in plan.documents(step)]
    assert len(read) == plan.steps * batch, "the last batch is filled from what would come next"
    often = Counter(read[:total])
    assert all(
        often[name, document] == asked[name]
        for name, count in counts.items()
        for document in range(count)
    )
    # Settled by the records' own count, the same batches.
    settled = stage.settled({"learning_rate": 1e-3}, counts)
    assert settled.steps == plan.steps
    again = data.plan_batches(sources, settled, sft, seed=seed)
    assert [again.documents(step) for step in range(plan.steps)] == [
        plan.documents(step) for step in range(plan.steps)
    ]


def test_each_pass_has_an_order_of_its_own():
    plan = data.plan_batches(
        {"a": in_memory("a", [3] * 40)}, counting(epochs=2, batch=40), sft, seed=0
    )
    first, second = plan.documents(0), plan.documents(1)
    assert sorted(first) == sorted(second) and first != second


def test_steps_read_documents_in_the_shares_of_the_weights():
    sources = {"a": in_memory("a", [3] * 10), "b": in_memory("b", [5] * 90)}
    stage = counting(mixture={"a": 3.0, "b": 1.0}, steps=10, batch=4)
    plan = data.plan_batches(sources, stage, sft, seed=0)
    for step in range(10):
        assert Counter(name for name, _ in plan.documents(step)) == {"a": 3, "b": 1}
    assert plan.epochs == {"a": 3.0, "b": pytest.approx(1 / 9)}


def test_a_batch_of_whole_documents_is_that_of_their_trees():
    for parts in (1, 3):
        tokens = in_memory("a", [4, 9, 3, 7, 12], parts)
        plan = data.plan_batches({"a": tokens}, counting(epochs=2), sft, seed=0)
        for step in range(plan.steps):
            trees = [tokens.tree(document) for _, document in plan.documents(step)]
            assert same(plan.batch(step), data.batch_of(trees))


# Both


@pytest.mark.parametrize("stage", [packed(), counting(epochs=3)], ids=["tokens", "documents"])
def test_a_batch_is_a_pure_function_of_data_mixture_seed_and_step(stage):
    sources = {"a": in_memory("a", [5, 9, 4, 3, 17] * 3)}
    objective = next_token if stage.batch_tokens else sft
    plan = data.plan_batches(sources, stage, objective, seed=1)
    again = data.plan_batches(dict(sources), stage, objective, seed=1)
    other = data.plan_batches(sources, stage, objective, seed=2)
    # In any order, and more than once.
    for step in (5, 0, 5):
        assert same(plan.batch(step), again.batch(step))
    assert not all(same(plan.batch(step), other.batch(step)) for step in range(3))
    assert plan.fingerprint == again.fingerprint != other.fingerprint
    changed = {"a": replace(sources["a"], id="other")}
    moved = data.plan_batches(changed, stage, objective, seed=1)
    assert moved.fingerprint != plan.fingerprint and moved.data == {"a": "other"}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            packed(tokens=12 * 128, repetition_cap=2),
            r"stage 'pretrain' reads source 'a' \d\.\d+ times, but its repetition_cap is 2; "
            r"lower the stage's tokens or the source's weight, give",
        ),
        (counting(epochs=3, repetition_cap=2), "source 'a' 3 times, .* lower the stage's epochs"),
        (counting(steps=60, repetition_cap=2), "source 'a' 2.4 times, .* lower the stage's steps"),
    ],
    ids=["tokens", "epochs", "steps"],
)
def test_reading_a_source_more_often_than_its_cap_is_an_error(stage, message):
    sources = {"a": in_memory("a", [5] * 100)}
    objective = next_token if stage.batch_tokens else sft
    with pytest.raises(UserError, match=message):
        data.plan_batches(sources, stage, objective, seed=1)
    data.plan_batches(sources, replace(stage, repetition_cap=3.2), objective, seed=1)


def test_what_fills_the_last_batch_is_no_repetition():
    stage = counting(epochs=1, batch=64, repetition_cap=1)
    plan = data.plan_batches({"a": in_memory("a", [5] * 100)}, stage, sft, seed=1)
    assert plan.steps == 2 and plan.epochs["a"] == 1.28


def test_steps_that_were_counted_before_documents_were_left_out_do_not_pass_the_cap():
    stage = counting(epochs=1, batch=4, repetition_cap=1, steps=25)
    left = {"a": in_memory("a", [5] * 60)}
    with pytest.raises(UserError, match=r"source 'a' 1\.6667 times, but its repetition_cap is 1"):
        data.plan_batches(left, stage, sft, seed=1)


def test_prefetched_batches_are_the_plans_own_and_leave_no_thread_behind():
    plan = data.plan_batches({"a": in_memory("a", [5] * 99)}, packed(), next_token, seed=1)
    found = list(data.prefetched(plan, 3, 7))
    assert len(found) == 4
    assert all(same(batch, plan.batch(step)) for step, batch in enumerate(found, 3))
    assert not list(data.prefetched(plan, 7, 7))
    stopped = data.prefetched(plan, 0, 12)
    next(stopped)
    stopped.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


# Tokens


def test_documents_come_back_from_disk_as_they_were_encoded(tmp_path):
    rows = [
        {"prompt": [1, 2], "branches": [[3], [4, 5]], "targets": [[True], [False, True]]},
        {"prompt": [], "branches": [[6, 7], [8, 9, 10]]},
    ]
    tokens = tokenised(tmp_path, rows, spelled("pair"))
    assert tokens.documents == 2 and tokens.lengths.tolist() == [5, 5]
    assert tokens.tree(0) == data.Tree([1, 2], ([3], [4, 5]), ([True], [False, True]))
    assert tokens.tree(1).prompt == [] and tokens.tree(1).branches == ([6, 7], [8, 9, 10])


def test_tokens_are_made_once_and_named_by_all_that_makes_them(tmp_path):
    rows = [{"branches": [[1, 2, 3]]}]
    first = tokenised(tmp_path, rows, spelled("conversation"))
    assert tokenised(tmp_path, rows, spelled("conversation", encode=None)).id == first.id
    others = [
        tokenised(tmp_path, rows, spelled("conversation"), 9),
        tokenised(tmp_path, rows, spelled("conversation", version=2)),
        tokenised(tmp_path, [*rows, *rows], spelled("conversation")),
    ]
    assert len({first.id, *(tokens.id for tokens in others)}) == 4
    # A text is cut when it is packed: its tokens are the same for every sequence_length.
    text = tokenised(tmp_path, rows, spelled("text"), 2)
    assert text.id == tokenised(tmp_path, rows, spelled("text"), 9).id


def test_a_damaged_token_file_is_an_error_and_not_another_text(tmp_path):
    tokens = tokenised(tmp_path, [{"branches": [[1, 2, 3]]}], spelled("text"))
    file = tmp_path / "tokens" / tokens.id / "tokens.u32"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"tokens\.u32 is damaged; delete the folder and run again"):
        tokenised(tmp_path, [{"branches": [[1, 2, 3]]}], spelled("text"))


def test_a_conversation_loses_its_end_and_is_dropped_with_its_last_target(tmp_path):
    rows = [
        {"branches": [list(range(12))]},
        {"branches": [list(range(12))], "targets": [[False] * 9 + [True] * 3]},
        {"branches": [list(range(8))]},
    ]
    tokens = tokenised(tmp_path, rows, spelled("conversation"))
    assert tokens.lengths.tolist() == [8, 8] and tokens.tree(0).branches[0] == list(range(8))
    assert tokens.too_long == 2 and tokens.dropped == {"no target": 1}


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.integers(0, 20),
    chosen=st.integers(1, 20),
    rejected=st.integers(1, 20),
    length=st.integers(4, 16),
)
def test_a_long_pair_keeps_its_prompts_end_and_its_responses_beginnings(
    tmp_path_factory, prompt, chosen, rejected, length
):
    asked = list(range(prompt))
    answers = [list(range(100, 100 + chosen)), list(range(200, 200 + rejected))]
    row = {"prompt": asked, "branches": answers}
    folder = tmp_path_factory.mktemp("pairs")
    short = prompt == 0 and min(chosen, rejected) == 1
    rows = [row, {"prompt": [1], "branches": [[2], [3]]}]
    tokens = tokenised(folder, rows, spelled("pair"), length)
    if short:
        assert tokens.dropped == {"no target": 1}
        return
    tree = tokens.tree(0)
    fits = prompt + max(chosen, rejected) <= length
    assert tokens.too_long == (not fits)
    assert len(tree.prompt) + max(map(len, tree.branches)) <= length
    assert tree.prompt == asked[prompt - len(tree.prompt) :]
    for branch, answer in zip(tree.branches, answers, strict=True):
        assert branch == answer[: len(branch)]
    if fits:
        assert (tree.prompt, list(tree.branches)) == (asked, answers)
    else:
        assert len(tree.prompt) + max(map(len, tree.branches)) == length
        if prompt > length // 2:
            assert max(map(len, tree.branches)) >= min(max(chosen, rejected), length // 2)
        else:
            assert tree.prompt == asked, "a short prompt stays whole"


def test_pairs_that_teach_nothing_are_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": [1], "branches": [[2, 3], [4]]},
        {"prompt": [1], "branches": [[2, 3], [2, 3]]},
        {"prompt": [1], "branches": [[*range(9)], [*range(8)]]},
        {"prompt": [1], "branches": [[2], []]},
        {"prompt": [1], "branches": [[2], [3]], "targets": [[True], [False]]},
    ]
    tokens = tokenised(tmp_path, rows, spelled("pair"))
    assert tokens.documents == 1
    assert tokens.dropped == {"no token": 1, "no target": 1, "chosen equals rejected": 2}
    # Where the end of an answer is scored, one that lost it is no answer.
    scored = tokenised(tmp_path, rows, spelled("pair", head="score", name="scored"))
    assert scored.dropped["longer than sequence_length"] == 1


def test_prompts_keep_their_rows_and_long_ones_are_dropped(tmp_path):
    rows = [
        {"id": "0", "branches": [[1, 2]], "answer": "4"},
        {"id": "1", "branches": [[*range(9)]], "answer": "too long"},
        {"id": "2", "branches": [[3]], "answer": "é\u2028"},
    ]
    tokens = tokenised(tmp_path, rows, spelled("prompt"))
    assert tokens.documents == 2 and tokens.too_long == 1
    assert tokens.dropped == {"longer than sequence_length": 1}
    assert [tokens.row(document) for document in range(2)] == [rows[0], rows[2]]
    assert tokens.tree(1) == data.Tree((), ([3],), ([False],))
    with pytest.raises(UserError, match="all its 1 documents are longer than sequence_length"):
        tokenised(tmp_path, rows[1:2], spelled("prompt"))


def test_a_source_without_a_target_is_an_error(world, tmp_path):
    file = tmp_path / "user_only.jsonl"
    file.write_text('{"id": "1", "messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UserError, match=r"none of its 1 documents .*no token is a target"):
        data.tokenise("a", [file], world.tokenizer, "t", sft, 32, root=tmp_path, data_id="x")


def test_a_source_without_documents_is_an_error(tmp_path):
    with pytest.raises(UserError, match="source 'a' holds no document after decontamination"):
        tokenised(tmp_path, [], spelled("text"))


def test_texts_are_cut_where_a_row_ends_and_every_token_is_read():
    tokens = in_memory("a", [5, 40, 16, 100, 17, 3] * 5)
    stage = packed(sequence_length=16, tokens=100 * 128)
    plan = data.plan_batches({"a": tokens}, stage, next_token, seed=5)
    # A token's id is its place.
    read: Counter[int] = Counter()
    for step in range(plan.steps):
        batch = plan.batch(step)
        assert np.diff(batch.segments[:, :2], axis=1).max() <= 16
        read.update(batch.input_ids.tolist())
    times = [read[token] for token in range(len(tokens.tokens))]
    # Passes over all pieces, the last one unfinished, less the rows that are still open.
    assert plan.epochs["a"] - 2 < min(times) <= max(times) < plan.epochs["a"] + 2


def test_conversations_are_never_cut_by_packing(world, tmp_path):
    tokens = tokens_of(world, tmp_path, "sft")
    plan = data.plan_batches({"a": tokens}, packed(objective="sft"), sft, seed=5)
    for step in range(plan.steps):
        trees = [tokens.tree(document) for _, document in plan.documents(step)]
        assert same(plan.batch(step), data.batch_of(trees))


HUSH = "{% for m in messages %}{% if m.content != 'hush' %}{{ m.content }} {% endif %}{% endfor %}"


@pytest.mark.parametrize("hushed", [0, 1, 3])
def test_a_document_of_no_token_is_left_out_and_counted(hushed, world, tmp_path):
    said = ["hush"] * hushed + ["the cat sat on a mat"] * 5 + ["hush"] * hushed
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": t}]} for n, t in enumerate(said)
    ]
    tokens = hushing(rows, world, tmp_path)
    assert tokens.documents == 5 and tokens.lengths.min() > 0
    assert tokens.dropped == ({"no token": 2 * hushed} if hushed else {})
    plan = data.plan_batches({"a": tokens}, packed(), next_token, seed=5)
    assert plan.length.min() > 0


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
    return data.tokenise("a", [file], tokenizer, "t", next_token, 32, root=folder, data_id="x")
