"""Verifiable rewards: each prompt's own verifier, on any thread, and None for what is unjudged."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from evalsuite import verifiers
from evalsuite.errors import UserError
from trainloop.rewards import check_able, judge, rewards

GSM8K = {"id": "g", "answer": "72", "verifier": "gsm8k", "doc": {}}
MATH = {"id": "m", "answer": r"\frac{1}{2}", "verifier": "mathematics", "doc": {}}
SUM = {
    "id": "s",
    "answer": "9",
    "verifier": "microworld",
    "doc": {"operations": 2, "question": "Vamo has 7 , gains 5 . Vamo loses 3 ."},
}
MARKED = {"id": "a", "answer": "9", "verifier": "match", "doc": {"answer_regex": r"answer (\d+)"}}
ASKED = {
    "id": "i",
    "verifier": "ifeval",
    "doc": {
        "prompt": "",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    },
}
CODE = {
    "id": "c",
    "verifier": "programs",
    "doc": {"tests": "assert double(3) == 6"},
}


def test_each_row_is_judged_by_its_own_verifier_in_the_order_of_the_texts() -> None:
    rows = [GSM8K, SUM, MARKED, GSM8K, SUM, MARKED]
    texts = [
        "48 + 24 = 72\n#### 72",
        "7+5=12 12-3=9 answer 9\nand more",
        "answer 3, no: answer 9",
        "#### 71",
        "7+5=12 12-3=8 answer 8",
        "nine",
    ]
    assert rewards(rows, texts) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_ifeval_gives_the_share_of_instructions_that_are_followed() -> None:
    texts = ["the sea is deep", "The Sea Is Deep", "The Sea, Deep", ""]
    assert rewards([ASKED] * 4, texts) == [1.0, 0.5, 0.0, 0.0]


def test_programs_run_in_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_WEAKER_SANDBOX", "1")
    right, wrong = ("def double(x):\n    return x * 2", "def double(x):\n    return x")
    assert rewards([CODE, CODE], [right, wrong], workers=2) == [1.0, 0.0]


def test_mathematics_is_judged_off_the_main_thread_as_on_it() -> None:
    texts = [r"so $\boxed{0.5}$", r"so $\boxed{2}$"]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(rewards([MATH, MATH], texts)))
    thread.start()
    thread.join(120)
    assert found == rewards([MATH, MATH], texts) == [1.0, 0.0]


def test_what_cannot_be_judged_has_no_reward_and_a_reason() -> None:
    found = judge([GSM8K | {"answer": ""}, GSM8K], ["#### 72", "#### 72"])
    assert found[0][0] is None and "no gold answer" in str(found[0][1])
    assert found[1] == (1.0, None)


def test_a_verdict_that_a_verifier_refused_is_none_and_not_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asleep(name: str, answers: list[Any], *, workers: int) -> list[verifiers.Verdict]:
        return [verifiers.Verdict(score=None, error="asleep") for _ in answers]

    monkeypatch.setattr(verifiers, "verify", asleep)
    assert rewards([ASKED, CODE], ["a", "b"]) == [None, None]


def test_a_row_without_verifier_and_a_verifier_that_is_not_there_are_named() -> None:
    with pytest.raises(UserError, match="prompt 'g' names no verifier"):
        rewards([GSM8K | {"verifier": ""}], ["72"])
    with pytest.raises(UserError, match="'gsm8' is not there; did you mean 'gsm8k'"):
        check_able([GSM8K | {"verifier": "gsm8"}])
    check_able([GSM8K, MATH, SUM])
