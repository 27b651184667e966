"""On-policy pairs: a right answer above a wrong one, and every prompt and answer accounted for."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalsuite import verifiers
from evalsuite.errors import UserError
from tests.trainloop import tinyrl
from trainloop import pairs, preference, ranks, reference, rollouts
from trainloop.data import Tokens, tokenise
from trainloop.live import Everywhere
from trainloop.objectives import load_objective
from trainloop.policy import Policy
from trainloop.records import OnPolicyPairs

CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
SETTINGS = OnPolicyPairs(prompts="sums", policy="sft", samples=6, max_new_tokens=12)
EVEN = ["0", "2", "4", "6", "8"]
LAST_DIGIT = {"answer_regex": "[0-9]"}
WAIT_SECONDS = 240


def tokenizer() -> Any:
    """tinyrl's, with a template that ends an answer."""
    found = tinyrl.tokenizer()
    found.chat_template = CHAT
    return found


def dice(ends: float = 0.3, odd: float = 0.01) -> Any:
    """A model that writes each digit alike whatever stands before, and ends by and by.

    `ends` is the chance of the end token, `odd` that of <unk>, which no text shows.
    """
    model = tinyrl.language_model()
    chances = torch.full((len(tinyrl.WORDS),), 1e-9)
    chances[tinyrl.END], chances[tinyrl.WORDS.index("<unk>")] = ends, odd
    chances[tinyrl.WORDS.index("0") :] = (1 - ends - odd) / 10
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight.copy_((chances.log() / model.config.hidden_size)[:, None])
    return model


def prompt(number: int, **changes: Any) -> dict[str, Any]:
    """A prompt that is right when the answer's last digit is even."""
    messages = [{"role": "user", "content": str(number % 10)}]
    row = {"id": f"p{number}", "messages": messages, "answer": EVEN}
    return row | {"verifier": "match", "doc": LAST_DIGIT} | changes


def make(rows: list[dict[str, Any]], root: Path, model: Any, **other: Any) -> Path:
    settings = {"seed": 1, "ranks": tinyrl.ALONE, "pairs_id": "x", "settings": SETTINGS} | other
    return pairs.make(model, tokenizer(), rows, root=root, **settings)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_pair_has_a_right_answer_above_a_wrong_one_and_the_prompts_own_id(tmp_path):
    prompts = [prompt(number) for number in range(12)]
    file = make(prompts, tmp_path, dice())
    found = rows_of(file)
    assert file == tmp_path / "pairs" / "x" / "pairs.jsonl" == pairs.made(tmp_path, "x")
    assert len(found) > 6
    by_id = {row["id"]: row for row in prompts}
    for row in found:
        assert set(row) == {"id", "messages", "chosen", "rejected"}
        assert row["messages"] == by_id[row["id"]]["messages"]
        judged = [
            verifiers.Answer(text=row[name], gold=EVEN, doc=LAST_DIGIT)
            for name in ("chosen", "rejected")
        ]
        assert [verdict.score for verdict in verifiers.verify("match", judged)] == [1.0, 0.0]
    told = pairs.counts(tmp_path, "x")
    assert told["pairs"] == len(found) and told["prompts"] == 12
    assert all(tree.prompt for tree in preference.encode(found, tokenizer()))


def test_every_prompt_without_a_pair_and_every_answer_left_out_is_counted(tmp_path):
    always = {"answer_regex": "$"}  # what it finds is empty, in any text
    long = [{"role": "user", "content": " ".join("1" * 60)}]
    prompts = [
        *[prompt(number) for number in range(8)],
        prompt(8, answer=["", "x"], doc=always),
        prompt(9, answer="x", doc=always),
        prompt(10, answer=""),
        prompt(11, messages=long),
    ]
    make(prompts, tmp_path, dice())
    told = pairs.counts(tmp_path, "x")
    assert told["all_right"] >= 1 and told["all_wrong"] >= 1
    assert told["none_judged"] == 1 and told["too_long"] == 1 and told["prompts"] == 12
    assert 4 <= told["unjudged"] <= SETTINGS.samples, "the one prompt without a gold answer"
    ways = ("pairs", "all_right", "all_wrong", "none_judged", "too_long")
    assert sum(told[way] for way in ways) == 12


def test_an_answer_that_did_not_end_is_in_no_pair(tmp_path):
    short = OnPolicyPairs(prompts="sums", policy="sft", samples=16, max_new_tokens=2)
    found = rows_of(make([prompt(n) for n in range(6)], tmp_path, dice(), settings=short))
    assert found
    for row in found:  # an ended answer of two tokens has one digit at most
        assert len(row["chosen"]) == 1 and len(row["rejected"]) <= 1
    assert pairs.counts(tmp_path, "x")["unfinished"] > 0


def test_answers_that_the_template_spells_otherwise_are_counted(tmp_path):
    prompts = [prompt(number) for number in range(6)]
    make(prompts, tmp_path / "plain", dice(odd=1e-9))
    assert pairs.counts(tmp_path / "plain", "x")["respelled"] == 0
    make(prompts, tmp_path / "odd", dice(odd=0.5))  # <unk> is in the tokens, not in the text
    assert pairs.counts(tmp_path / "odd", "x")["respelled"] > 0


def test_pairs_are_made_once_and_the_same_seed_makes_the_same_ones(tmp_path):
    prompts = [prompt(number) for number in range(8)]
    first = make(prompts, tmp_path / "a", dice()).read_bytes()
    assert make(prompts, tmp_path / "a", None).read_bytes() == first
    assert make(prompts, tmp_path / "b", dice()).read_bytes() == first
    assert make(prompts, tmp_path / "c", dice(), seed=2).read_bytes() != first


def test_chunks_of_prompts_do_not_repeat_each_others_answers(tmp_path, monkeypatch):
    written = []

    def spied(*given: Any, **settings: Any) -> Any:
        found = rollouts.sample(*given, **settings)
        written.extend(tuple(answer.ids for answer in answers) for answers in found)
        return found

    monkeypatch.setattr(pairs, "TOGETHER", 4)
    monkeypatch.setattr(pairs, "sample", spied)
    prompts = [prompt(number, messages=prompt(0)["messages"]) for number in range(16)]
    make(prompts, tmp_path, dice())
    assert len(written) == 16 == len(set(written)), "one question, asked 16 times"


def test_prompts_that_make_no_pair_at_all_are_a_user_error_with_the_counts(tmp_path):
    hopeless = [prompt(number, answer="x") for number in range(3)]
    with pytest.raises(UserError, match=r"'sums' made a pair \(prompts 3, all_wrong 3"):
        make(hopeless, tmp_path, dice())
    assert pairs.made(tmp_path, "x") is None


def test_what_cannot_be_judged_is_refused_before_the_model_is_asked(tmp_path):
    with pytest.raises(UserError, match="did you mean 'match'"):
        make([prompt(0, verifier="macth")], tmp_path, None)
    with pytest.raises(UserError, match="'p1' is no prompt"):
        make([prompt(0), prompt(1, messages=[])], tmp_path, None)


def test_the_name_of_pairs_says_what_made_them_and_not_what_a_recipe_calls_it():
    known = ("weights", "tokenizer", "prompts", SETTINGS)
    base = pairs.pairs_id(*known, seed=0)
    others = [
        pairs.pairs_id("other", *known[1:], seed=0),
        pairs.pairs_id("weights", "other", *known[2:], seed=0),
        pairs.pairs_id("weights", "tokenizer", "other", SETTINGS, seed=0),
        pairs.pairs_id(*known, seed=1),
        pairs.pairs_id(*known[:3], OnPolicyPairs(prompts="sums", policy="sft"), seed=0),
    ]
    assert len({base, *others}) == 6
    renamed = OnPolicyPairs(prompts="p", policy="q", samples=6, max_new_tokens=12)
    assert pairs.pairs_id(*known[:3], renamed, seed=0) == base


# --- two ranks ----------------------------------------------------------------------------------


def test_two_ranks_make_the_pairs_and_reference_numbers_that_one_makes(
    tmp_path, repository, monkeypatch
):
    monkeypatch.syspath_prepend(repository)  # the children import this module by its name
    alone, both = tmp_path / "alone", tmp_path / "both"
    expected = both_rooms(tinyrl.ALONE, alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=one_of_two, args=(rank, port, str(both))) for rank in range(2)
    ]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(WAIT_SECONDS)
        assert [child.exitcode for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    name = "pairs/x/pairs.jsonl"
    assert (both / name).read_bytes() == (alone / name).read_bytes()
    assert pairs.counts(both, "x") == pairs.counts(alone, "x")
    for rank in range(2):
        found = np.load(both / f"rank{rank}.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def one_of_two(rank: int, port: int, root: str) -> None:
    """The body of one process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    joined = ranks.join("ddp")
    found = both_rooms(joined, Path(root))
    np.save(Path(root) / f"rank{rank}.npy", found)
    ranks.leave()


def both_rooms(joined: ranks.Ranks, root: Path) -> np.ndarray:
    """Pairs, and their reference log-probabilities by a model in float64."""
    file = make([prompt(number) for number in range(9)], root, dice(), ranks=joined)
    tokens = pair_tokens(file, root / f"tokens{joined.rank}")
    model = tinyrl.language_model(3).double()
    everywhere = Everywhere(
        Policy(model), joined, tinyrl.stage(objective="dpo", micro_tokens=40), "logprobs", {}
    )
    found = reference.reference({"a": tokens}, everywhere, weights_id="w", root=root, ranks=joined)
    return found["a"]


def pair_tokens(file: Path, root: Path) -> Tokens:
    return tokenise(
        "a", [file], tokenizer(), "t", load_objective("dpo"), 32, root=root, data_id="a"
    )
