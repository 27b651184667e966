"""Rollouts: the same for any number of ranks, counted, recorded; and vLLM's side of the call."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.files import read_jsonl
from tests.trainloop import tinyrl
from trainloop import rollouts, rollouts_vllm
from trainloop.data import Tree, batch_of
from trainloop.objectives.grpo import Options
from trainloop.policy import Policy
from trainloop.rollouts import Rollout

WRITING: dict[str, Any] = {"samples": 4, "temperature": 1.0, "max_new_tokens": 6, "seed": 3}
MODEL = tinyrl.language_model()
PROMPTS = [tree.branches[0] for tree, _ in tinyrl.prompts(5)]


def _write(ranks: Any = tinyrl.ALONE, rows: int = 64, **changes: Any) -> list[list[Rollout]]:
    return rollouts.sample(
        copy.deepcopy(MODEL),  # ranks here are threads, and each has a model of its own
        tinyrl.tokenizer(),
        PROMPTS,
        rows=rows,
        ranks=ranks,
        **(WRITING | changes),
    )


def test_answers_are_the_same_for_one_and_two_ranks_on_each_and_for_any_number_of_rows() -> None:
    alone = _write()
    assert tinyrl.on_ranks(2, _write) == [alone, alone]
    assert _write(rows=3) == alone
    assert [len(group) for group in alone] == [4] * 5


def test_answers_change_with_the_seed_and_the_place_of_the_prompt() -> None:
    twice = rollouts.sample(
        MODEL,
        tinyrl.tokenizer(),
        [PROMPTS[0], PROMPTS[0]],
        rows=8,
        ranks=tinyrl.ALONE,
        **WRITING,
    )
    assert twice[0] != twice[1]
    assert _write(seed=4) != _write()


def test_an_answer_keeps_its_end_of_text_token_and_says_whether_it_ended() -> None:
    every = [one for group in _write() for one in group]
    assert {one.ended for one in every} == {True, False}
    for one in every:
        assert one.ended == (one.ids[-1] == tinyrl.END)
        assert one.ended or len(one.ids) == WRITING["max_new_tokens"]
        assert "</s>" not in one.text


def test_a_prompt_that_does_not_fit_the_context_with_its_answer_is_named() -> None:
    with pytest.raises(UserError, match=r"prompt of 3 tokens and max_new_tokens \(62\).*of 64"):
        _write(max_new_tokens=62)


def test_collected_groups_are_judged_alike_on_one_and_two_ranks() -> None:
    def collect(ranks: Any) -> list[rollouts.Group]:
        policy = Policy(copy.deepcopy(MODEL))
        options = Options(samples=3, max_new_tokens=4)
        return rollouts.collect(tinyrl.tiny_live(policy, tinyrl.prompts(5), options, ranks=ranks))

    alone = collect(tinyrl.ALONE)
    assert tinyrl.on_ranks(2, collect) == [alone, alone]
    assert {reward for group in alone for reward in group.rewards} <= {0.0, 1.0}


def test_a_model_of_nan_stops_the_run_instead_of_giving_rewards_of_zero() -> None:
    model = tinyrl.language_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    options = Options(max_new_tokens=4)
    live = tinyrl.tiny_live(Policy(MODEL), tinyrl.prompts(2), options, model=model)
    with pytest.raises(
        UserError, match=r"stage 'rl', step 1: none of the answers could be written.*NaN"
    ):
        rollouts.collect(live)


def test_when_no_answer_can_be_judged_the_first_reason_is_told() -> None:
    given = tinyrl.prompts(2, answer="")
    options = Options(samples=2, max_new_tokens=2)
    live = tinyrl.tiny_live(Policy(MODEL), given, options)
    with pytest.raises(UserError, match=r"could be judged; .*no gold answer to judge by"):
        rollouts.collect(live)


def test_an_unknown_verifier_is_told_before_anything_is_written() -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("the model was asked")

    given = tinyrl.prompts(2, verifier="matsch")
    live = tinyrl.tiny_live(
        Policy(MODEL), given, Options(), model=SimpleNamespace(forward=no_model)
    )
    with pytest.raises(UserError, match="'matsch' is not there; did you mean 'match'"):
        rollouts.collect(live)


def test_samples_are_appended_by_rank_zero_with_why_one_has_no_reward(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "samples.jsonl"
    group = rollouts.Group(
        [3, 4],
        {"id": "p"},
        [Rollout((5, 1), True, "0"), Rollout((6, 7), False, "1\u20282")],
        [1.0, None],
        [None, "the judge fell asleep"],
    )
    policy = Policy(MODEL)
    for rank in (0, 1):
        ranks = SimpleNamespace(main=rank == 0)
        live = tinyrl.tiny_live(policy, [], Options(), samples=path, step=4, ranks=ranks)
        rollouts.record(live, [group])
    assert [line for _, line in read_jsonl(path)] == [
        {
            "step": 5,
            "prompt": "p",
            "sample": 0,
            "reward": 1.0,
            "ended": True,
            "tokens": 2,
            "text": "0",
        },
        {
            "step": 5,
            "prompt": "p",
            "sample": 1,
            "reward": None,
            "ended": False,
            "tokens": 2,
            "text": "1\u20282",
            "error": "the judge fell asleep",
        },
    ]


def test_counts_tell_unwritten_unjudged_and_ended_answers_apart() -> None:
    group = rollouts.Group(
        [3],
        {},
        [
            Rollout((5, 1), True, "0"),
            Rollout((6, 7, 8), False, "1 2 3"),
            Rollout((), False, "", "NaN"),
            Rollout((5, 6, 1), True, "0 1"),
        ],
        [1.0, 0.0, None, None],
        [None, None, "NaN", "judge"],
    )
    assert rollouts.counts([group]) == {
        "reward": 0.5,
        "answers": 4,
        "answer_tokens": 2,
        "ended": 0.5,
        "unwritten": 1,
        "unjudged": 1,
    }


# --- batches -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30) | st.none())
def test_a_tree_is_cut_into_trees_of_its_prompt_that_fit_and_lose_nothing(
    lengths: list[int], tokens: int | None
) -> None:
    tree = Tree(
        (1, 2),
        tuple([n] * length for n, length in enumerate(lengths)),
        tuple([True] * length for length in lengths),
        {"advantage": [float(n) for n in range(len(lengths))]},
    )
    parts = rollouts.cut(tree, tokens)
    assert [b for part in parts for b in part.branches] == list(tree.branches)
    assert [a for part in parts for a in part.of_sequence["advantage"]] == list(
        tree.of_sequence["advantage"]
    )
    for part in parts:
        assert part.prompt == (1, 2)
        size = 2 + sum(map(len, part.branches))
        assert tokens is None or size <= tokens or len(part.branches) == 1
    assert tokens is not None or len(parts) == 1


def test_numbers_of_a_batch_go_back_to_the_branches_they_belong_to() -> None:
    trees = [
        Tree((1,), ((2, 3), (4,)), ((True, True), (True,))),
        Tree((1,), ((5, 6, 7),), ((False, True, True),)),
    ]
    numbers = np.arange(5.0)
    full = rollouts.filled(trees, {"old": numbers})
    assert np.array_equal(batch_of(full).of_target["old"], numbers)
    assert [list(each) for each in full[1].of_target["old"]] == [[3.0, 4.0]]


def test_every_epoch_goes_through_all_groups_once_and_too_few_leave_empty_steps() -> None:
    groups = [[Tree((9,), ((n + 10,),), ((True,),))] for n in range(3)]
    batches = rollouts.step_batches(groups, updates=2, epochs=2, seed=1)
    labels = [batch.labels.tolist() for batch in batches]
    assert labels[0] + labels[1] == [10, 11, 12]
    assert sorted(labels[2] + labels[3]) == [10, 11, 12]
    assert [
        b.documents for b in rollouts.step_batches(groups[:1], updates=3, epochs=1, seed=1)
    ] == [
        1,
        0,
        0,
    ]


# --- vLLM, by a module that records what it is asked -------------------------------------------


class _Recorded:
    """What a vLLM engine would be asked, and answers of one token."""

    def __init__(self, calls: list[tuple[str, Any]], **settings: Any) -> None:
        self.calls = calls
        calls.append(("LLM", settings))

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            self.calls.append((name, args or kwargs))
            if "kwargs" in kwargs:
                self.calls[-1] = (name, (*args, kwargs["kwargs"]))

        return call

    def generate(self, asked: list[Any], settings: list[Any], **_: Any) -> list[Any]:
        self.calls.append(("generate", (asked, settings)))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=[prompt["prompt_token_ids"][1], tinyrl.END],
                        text=str(number),
                        finish_reason="length" if number == 1 else "stop",
                    )
                ]
            )
            for number, prompt in enumerate(asked)
        ]


@pytest.fixture
def vllm_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A stand-in for the module vllm; the list of calls."""
    calls: list[tuple[str, Any]] = []
    module = types.ModuleType("vllm")
    module.__spec__ = types.SimpleNamespace(name="vllm")  # type: ignore[assignment]
    module.LLM = lambda **settings: _Recorded(calls, **settings)  # type: ignore[attr-defined]
    module.SamplingParams = lambda **settings: settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    rollouts_vllm._engine.cache_clear()
    return calls


def _vllm(seed: int = 3) -> list[list[Rollout]]:
    return rollouts_vllm.sample(
        MODEL,
        tinyrl.tokenizer(),
        PROMPTS[:2],
        rows=16,
        ranks=tinyrl.ALONE,
        **(WRITING | {"samples": 2, "seed": seed}),
    )


def test_vllm_gets_weights_as_a_folder_and_a_seed_of_its_own_for_each_answer(
    vllm_calls: list[tuple[str, Any]],
) -> None:
    found = _vllm()
    assert [name for name, _ in vllm_calls] == ["LLM", "generate", "sleep"]
    settings = vllm_calls[0][1]
    assert (Path(settings["model"]) / "model.safetensors").is_file()
    assert (Path(settings["model"]) / "tokenizer.json").is_file()
    assert settings["dtype"] == "float32" and not settings["trust_remote_code"]
    asked, sampling = vllm_calls[1][1]
    assert [one["prompt_token_ids"] for one in asked] == [p for p in PROMPTS[:2] for _ in "ab"]
    assert len({one["seed"] for one in sampling}) == 4
    assert all(0 <= one["seed"] < 2**63 and one["n"] == 1 for one in sampling)
    assert all(one["max_tokens"] == 6 and one["temperature"] == 1.0 for one in sampling)
    assert [[one.ended for one in group] for group in found] == [[True, False], [True, True]]
    assert found[0][0] == Rollout((PROMPTS[0][1], tinyrl.END), True, "0")


def test_vllm_is_woken_with_new_weights_and_forgets_what_it_cached_under_the_old_ones(
    vllm_calls: list[tuple[str, Any]],
) -> None:
    _vllm()
    first = Path(vllm_calls[0][1]["model"])
    del vllm_calls[:]
    _vllm(seed=4)
    names = [name for name, _ in vllm_calls]
    assert names == [
        "wake_up",
        "collective_rpc",
        "wake_up",
        "reset_prefix_cache",
        "generate",
        "sleep",
    ]
    method, given = vllm_calls[1][1]
    second = Path(given["weights_path"])
    assert method == "reload_weights" and (second / "model.safetensors").is_file()
    assert second != first and not first.exists()


def test_without_vllm_the_option_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollouts_vllm, "find_spec", lambda name: None)
    options = Options(engine="vllm")
    live = tinyrl.tiny_live(Policy(MODEL), tinyrl.prompts(2), options)
    with pytest.raises(UserError, match=r"pip install 'assay-lm\[vllm\]'"):
        rollouts.collect(live)
