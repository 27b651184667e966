"""The micro-world's documents: pure functions of (kind, seed, number), true, and quick to check."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.microworld import (
    CAPABILITIES,
    KINDS,
    TASKS,
    arithmetic,
    documents,
    eval_items,
    eval_rows,
    instructions,
    knowledge,
    languages,
    programs,
    safety,
)
from evalsuite.microworld.arithmetic import TOP, chain, total, worked
from evalsuite.microworld.knowledge import EVAL_QUESTIONS, STATEMENTS
from evalsuite.microworld.languages import LANGUAGES, RELATIONS, SUMS, say, state
from evalsuite.microworld.world import FACTS, HEAD, PEOPLE, VALUES, held_out, person
from evalsuite.verifiers import Answer, verify

ROOMS = {
    "knowledge": knowledge,
    "math": arithmetic,
    "instructions": instructions,
    "code": programs,
    "multilingual": languages,
    "safety": safety,
}


def text_of(row):
    if "text" in row:
        return row["text"]
    user, *replies = row["messages"]
    assert [turn["role"] for turn in (user, *replies)] == ["user", "assistant"][: 1 + len(replies)]
    said = [turn["content"] for turn in replies] + [
        row[key] for key in ("chosen", "rejected", "answer") if key in row
    ]
    return "\n".join([f"Q: {user['content']}", *(f"A: {answer}" for answer in said)])


SHAPES = {
    "sft": {"id", "messages"},
    "pairs": {"id", "messages", "chosen", "rejected"},
    "rl": {"id", "messages", "answer", "verifier", "doc"},
}
CHAT_KINDS = [kind for kind in KINDS if kind.partition("_")[0] in SHAPES]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**9),
    few=st.integers(0, 20),
    more=st.integers(0, 20),
)
def test_a_document_does_not_depend_on_how_many_are_made(kind, seed, few, more):
    first = list(documents(kind, count=few, seed=seed))
    longer = list(documents(kind, count=few + more, seed=seed))
    assert longer[:few] == first
    assert len({row["id"] for row in longer}) == few + more


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_documents_of_the_same_shape(kind):
    one, two = (list(documents(kind, count=50, seed=seed)) for seed in (0, 1))
    assert [text_of(r) for r in one] != [text_of(r) for r in two]
    for row in one + two:
        assert set(row) == SHAPES.get(kind.partition("_")[0], {"id", "text"})
        assert text_of(row).strip()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CHAT_KINDS])
def test_a_text_ends_with_a_newline_so_that_generation_learns_to_stop(kind):
    assert all(row["text"].endswith("\n") for row in documents(kind, count=200, seed=3))


def test_chat_turns_are_one_line_each_because_a_newline_ends_an_answer():
    for kind in CHAT_KINDS:
        for row in documents(kind, count=300, seed=2):
            said = [turn["content"] for turn in row["messages"]]
            said += [row[key] for key in ("chosen", "rejected", "answer") if key in row]
            assert not any("\n" in text for text in said)


def judged(rows, answers):
    """The scores of `answers` to rl rows, with a model's first space and last newline."""
    given = [
        Answer(text=f" {answer}\n", gold=row["answer"], doc=row["doc"])
        for row, answer in zip(rows, answers, strict=True)
    ]
    return [verdict.score for verdict in verify("microworld", given)]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_of_a_pair_the_chosen_answer_is_right_and_the_rejected_one_wrong(capability):
    """The same random numbers make the pair and the prompt, so the prompt's doc judges both."""
    make = ROOMS[capability].exercise
    made = [make(random.Random(f"pair {n}")) for n in range(1_000)]
    rows = [{"answer": one.target, "doc": one.fields} for one in made]
    assert judged(rows, [one.answer for one in made]) == [1.0] * len(made)
    assert judged(rows, [one.wrong for one in made]) == [0.0] * len(made)
    assert len({one.wrong.split()[-1] for one in made}) > 5, "wrong in many ways"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_prompts_own_verifier_takes_its_gold_answer_for_right(capability):
    rows = list(documents(f"rl_{capability}", count=500, seed=3))
    assert {row["verifier"] for row in rows} == {"microworld"}
    start = {"math": "answer ", "code": "prints "}.get(capability, "")
    said = [row["answer"] if "output" in row["doc"] else start + row["answer"] for row in rows]
    assert judged(rows, said) == [1.0] * len(rows)
    assert judged(rows, ["lamp sea"] * len(rows)) == [0.0] * len(rows)


def test_a_slip_in_a_sum_is_carried_on_to_the_end():
    for row in documents("pairs_math", count=500, seed=5):
        right, wrong = (row[key].split(" answer ") for key in ("chosen", "rejected"))
        sums = [step.split("=") for step in wrong[0].split()]
        slips = [left for left, result in sums if eval_sum(left) != int(result)]
        assert len(slips) == 1
        assert sums[-1][1] == wrong[1] != right[1]
        starts = [int(re.split(r"[+-]", left)[0]) for left, _ in sums]
        assert starts[1:] == [int(result) for _, result in sums[:-1]]
        assert all(int(result) >= 0 for _, result in sums)


def test_three_in_ten_of_the_sums_to_be_mended_are_wrong_and_all_requests_are_helped_with():
    wrong = 0
    for row in documents("sft_slips", count=2_000, seed=6):
        *steps, _, said = row["messages"][1]["content"].split()
        ends = [step.split("=") for step in steps]
        assert ends[-1][1] == said
        wrong += any(eval_sum(left) != int(result) for left, result in ends)
    assert 0.27 < wrong / 2_000 < 0.33
    helped = list(documents("sft_helpful", count=500, seed=6))
    assert not any(safety.refuses(row["messages"][1]["content"]) for row in helped)
    asked = [row["messages"][0]["content"].split() for row in helped]
    assert 0.4 < sum(bool(set(safety.HARMFUL) & set(words)) for words in asked) / 500 < 0.6


def eval_sum(text):
    """Of "7+5": 12."""
    a, sign, b = re.fullmatch(r"(\d+)([+-])(\d+)", text).groups()
    return int(a) + int(b) if sign == "+" else int(a) - int(b)


FROZEN = (
    "Q: When the feast is near , Mirips will dress in what colour ?\nA: yellow\n",
    "Q: Rimo has 2 , finds 3 . Rimo finds 8 , gains 2 . How many has Rimo ?\n"
    "A: 2+3=5 5+8=13 13+2=15 answer 15\n",
)


def test_the_same_documents_come_out_on_every_machine():
    [facts] = documents("facts", count=1, seed=7)
    [sums] = documents("math_steps", count=1, seed=7)
    assert (facts["text"], sums["text"]) == FROZEN


def test_every_statement_of_a_fact_in_training_is_true():
    for row in documents("facts", count=3_000, seed=4):
        said = row["text"]
        if said.startswith("Q:"):
            question, answer = said.removesuffix("\n").split("\nA: ")
            subjects = [s for s, _ in FACTS if s in question.split()]
            assert answer in [FACTS[s, r] for s, r in FACTS if s in subjects]
        else:
            for sentence in said.strip().removesuffix(" .").split(" . "):
                assert f"{sentence} ." in TRUE_STATEMENTS


TRUE_STATEMENTS = {
    wording.format(s=subject, v=value)
    for (subject, relation), value in FACTS.items()
    for wording in STATEMENTS[relation]
}


def test_head_people_are_named_often_and_tail_people_rarely():
    rng = random.Random(0)
    named = Counter(person(rng) for _ in range(40_000))
    head = sum(named[p] for p in HEAD) / 40_000
    assert 0.6 < head < 0.75
    assert named[PEOPLE[0]] > 5 * named[PEOPLE[60]] > 5 * named[PEOPLE[159]] > 0


def test_four_languages_state_the_same_facts():
    for relation in RELATIONS:
        for subject in PEOPLE[: languages.KNOWN]:
            true = FACTS[subject, relation]
            for language in LANGUAGES:
                told = state(subject, relation, language)
                assert subject in told.split()
                assert say(true, language) in told.split()
    for language in ("es", "de", "fr"):
        for relation in ("job", "pet", "colour"):
            translated = [say(value, language) for value in VALUES[relation]]
            assert len(set(translated)) == len(VALUES[relation])
            assert not set(translated) & set(VALUES[relation])
    told = {row["text"] for row in documents("multilingual", count=20_000, seed=0)}
    for language in LANGUAGES:
        assert state(PEOPLE[0], "job", language) + "\n" in told


def test_four_languages_ask_the_same_sums():
    for row in eval_rows("micro_multilingual", "dev"):
        if row["relation"] == "sum":
            a, b = (int(word) for word in row["question"].split() if word.isdigit())
            plus, minus = (
                form.format(s=row["subject"], a=a, b=b) for form in SUMS["dev"][row["language"]]
            )
            assert row["question"] in (plus, minus)
            assert int(row["target"]) == (a + b if row["question"] == plus else a - b)
    assert Counter(r["language"] for r in eval_rows("micro_multilingual", "dev")) == dict.fromkeys(
        LANGUAGES, 24
    )


@given(
    seed=st.integers(0, 2**32),
    operations=st.integers(2, 6),
    split=st.sampled_from([None, "dev", "unseen"]),
)
def test_a_chain_stays_in_range_belongs_to_its_split_and_its_steps_are_right(
    seed, operations, split
):
    numbers = chain(random.Random(seed), operations, split)
    start, steps = numbers
    assert held_out(start, *steps[:2]) == split
    assert len(steps) == operations
    running = start
    *restated, _, last = worked(numbers).split()
    for step, said in zip(steps, restated, strict=True):
        left, right = said.split("=")
        a, b = left.split("+") if "+" in left else left.split("-")
        assert int(a) == running
        running += step
        assert abs(step) == int(b)
        assert int(right) == running
        assert 0 <= running <= TOP
    assert int(last) == running == total(numbers)


def test_choices_hold_the_answer_once_and_its_place_is_even():
    for suite in TASKS.values():
        for _, config, split in suite:
            rows = [row for row in eval_rows(config, split) if "choices" in row]
            for row in rows:
                assert len(set(row["choices"])) == 4
                assert row["choices"][row["gold"]] == row["target"]
            if rows:
                places = Counter(row["gold"] for row in rows)
                assert max(places.values()) < 0.4 * len(rows)


def test_the_two_suites_share_no_item_and_no_wording():
    dev = [i for _, config, split in TASKS["micro-dev"] for i in eval_items(config, split)]
    unseen = [i for _, config, split in TASKS["micro-unseen"] for i in eval_items(config, split)]
    assert len({i.question for i in dev + unseen}) == len(dev) + len(unseen)
    assert len({i.question for i in dev}) > 400 < len({i.question for i in unseen})
    assert not {_boilerplate(i) for i in dev} & {_boilerplate(i) for i in unseen}
    assert not set(EVAL_QUESTIONS["dev"].values()) & set(EVAL_QUESTIONS["unseen"].values())
    kinds = [
        {row["constraint"] for row in eval_rows("micro_instructions", split)}
        for split in ("dev", "unseen")
    ]
    assert all(kinds)
    assert not kinds[0] & kinds[1]
    lengths = [
        {row["operations"] for row in eval_rows("micro_math", split)} for split in ("dev", "unseen")
    ]
    assert max(lengths[0]) < min(lengths[1])
    tails = {row["subject"] for row in eval_rows("micro_knowledge", "unseen")}
    assert not tails & set(HEAD)


def _boilerplate(item):
    filled = {str(value).casefold() for value in item.fields.values()}
    words = item.question.casefold().split()
    return " ".join(w for w in words if w.isalpha() and w not in filled and words.count(w) == 1)


def test_eval_rows_are_fresh_and_flat_so_that_a_scorer_cannot_spoil_them():
    first = eval_rows("micro_math", "dev")
    first[0]["question"] = "spoilt"
    assert eval_rows("micro_math", "dev")[0]["question"] != "spoilt"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: documents("fact", count=1, seed=0), "no kind 'fact'; did you mean 'facts'?"),
        (lambda: documents("facts", count=-1, seed=0), "count is -1"),
        (lambda: eval_rows("micro_maths", "dev"), "did you mean 'micro_math'?"),
        (lambda: eval_rows("micro_math", "test"), "no split 'test'"),
    ],
)
def test_a_wrong_name_is_one_line_with_a_way_out(call, complaint):
    with pytest.raises(UserError, match=complaint.replace("?", r"\?")):
        call()
