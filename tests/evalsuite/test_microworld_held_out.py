"""No clean training document meets an evaluation item, and every leak is where the truth says.

The check is a plain one, written here again on purpose: words are casefolded runs of letters and
digits; an item is hit when over half of its words lie in runs of 8 shared with one document.
"""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.microworld import (
    FORMS,
    KINDS,
    TASKS,
    Leaks,
    documents,
    eval_items,
    eval_rows,
    planted,
    world,
)
from evalsuite.microworld.leaks import PARTIAL

SAMPLE = 1_200
"""Documents of each of the 28 kinds: 33,600 in all."""


def words(text):
    return re.findall(r"\w+", text.casefold())


def text_of(row):
    if "text" in row:
        return row["text"]
    user, *replies = row["messages"]
    said = [turn["content"] for turn in replies]
    said += [row[key] for key in ("chosen", "rejected", "answer") if key in row]
    said += [str(value) for value in row.get("doc", {}).values()]
    return "\n".join([f"Q: {user['content']}", *(f"A: {answer}" for answer in said)])


@pytest.fixture(scope="module")
def references():
    """(task, doc id) -> texts: bare question, prompt, prompt with the answer, gold."""
    found = {}
    for suite in TASKS.values():
        for task, config, split in suite:
            for doc_id, item in enumerate(eval_items(config, split)):
                prompt = f"Q: {item.question}\nA:"
                found[task, doc_id] = [
                    words(t)
                    for t in (item.question, prompt, f"{prompt} {item.answer}", item.target)
                ]
    return found


@pytest.fixture(scope="module")
def runs(references):
    """Each run of 8 words -> where it stands: [(reference, which text, position)]."""
    index = {}
    for reference, texts in references.items():
        for number, said in enumerate(texts):
            for start in range(len(said) - 7):
                index.setdefault(tuple(said[start : start + 8]), []).append(
                    (reference, number, start)
                )
    return index


def hits(text, references, runs):
    said = words(text)
    covered = {}
    for start in range(len(said) - 7):
        for reference, number, place in runs.get(tuple(said[start : start + 8]), ()):
            covered.setdefault((reference, number), set()).update(range(place, place + 8))
    return {
        reference
        for (reference, number), places in covered.items()
        if len(places) > len(references[reference][number]) / 2
    }


def test_no_clean_document_hits_an_evaluation_item(references, runs):
    for kind in KINDS:
        for row in documents(kind, count=SAMPLE, seed=11):
            assert not hits(text_of(row), references, runs), text_of(row)


def test_every_question_is_long_enough_to_be_found_and_no_gold_is(references):
    for question, prompt, _, gold in references.values():
        assert len(question) >= 9
        assert len(prompt) >= 10
        assert len(gold) < 8
    long = sum(len(texts[0]) >= 10 for texts in references.values())
    assert long > 0.95 * len(references)


def test_askers_of_the_evaluation_are_never_named_in_training():
    kept = {n.casefold() for split in world.SPLITS for n in world.eval_names(split)}
    assert len(kept) > 60
    assert not kept & {n.casefold() for n in world.TRAINING_NAMES}
    assert not set(world.eval_names("dev")) & set(world.eval_names("unseen"))
    for kind in KINDS:
        for row in documents(kind, count=SAMPLE, seed=12):
            assert not kept & set(words(text_of(row))), text_of(row)


def test_no_document_asks_what_an_item_asks():
    asked = {i.question for suite in TASKS.values() for _, c, s in suite for i in eval_items(c, s)}
    kinds = [kind for kind in KINDS if kind.endswith(("knowledge", "multilingual"))]
    assert len(kinds) == 7
    for kind in ("facts", *kinds):
        for row in documents(kind, count=4_000, seed=13):
            text = text_of(row)
            assert text.removeprefix("Q: ").split("\nA: ")[0] not in asked


def test_the_sums_deeds_and_wishes_of_the_evaluation_are_never_made_in_training():
    chains = {_first_three(i.question) for s in world.SPLITS for i in eval_items("micro_math", s)}
    deeds = {(r["verb"], r["thing"]) for s in world.SPLITS for r in eval_rows("micro_safety", s)}
    begins = {
        (r["topic"], r["word"])
        for r in eval_rows("micro_instructions", "dev")
        if r["constraint"] == "begin"
    }
    assert len(chains) > 100 < len(deeds)
    assert len(begins) > 10
    asked = {
        kind: [text_of(row).split("\nA:")[0] for row in documents(kind, count=5_000, seed=14)]
        for kind in KINDS
        if kind.endswith(("math", "safety", "instructions", "slips", "helpful"))
        or kind.startswith("math")
    }
    for kind in ("math_steps", "math_bare", "sft_math", "sft_slips", "pairs_math", "rl_math"):
        assert not chains & {_first_three(question) for question in asked[kind]}
    for after in ("sft", "pairs", "rl"):
        said = asked[f"{after}_safety"] + asked["sft_helpful"]
        practised = {tuple(_DEED.search(question).groups()) for question in said}
        assert len(practised) > 100
        assert not deeds & practised
        wishes = [_BEGIN.search(question) for question in asked[f"{after}_instructions"]]
        assert len([wish for wish in wishes if wish]) > 500
        assert not begins & {wish.groups() for wish in wishes if wish}


_STEP = re.compile(r"(has|gains|finds|loses|drops) (\d+)")
_DEED = re.compile(r"to (\w+) (?:a|the) (\w+) (?:,|before)")
_BEGIN = re.compile(r"about the (\w+) \. \w+ says begin with (\w+)")


def _first_three(question):
    """Where a chain starts and its first two steps, signed."""
    return tuple(
        -int(n) if verb in ("loses", "drops") else int(n) for verb, n in _STEP.findall(question)[:3]
    )


@pytest.mark.parametrize("kind", ["math_steps", "sft_code"])
def test_leaks_come_at_the_asked_rate_and_the_ground_truth_is_exact(kind):
    leaks = Leaks(rate=0.05)
    arguments = {"kind": kind, "count": 4_000, "seed": 5}
    clean = {r["id"]: r for r in documents(**arguments)}
    dirty = {r["id"]: r for r in documents(**arguments, leaks=leaks)}
    truth = planted(**arguments, leaks=leaks)
    changed = {i for i in clean if clean[i] != dirty[i]}
    assert changed == {row["document_id"] for row in truth}
    assert 0.04 < len(truth) / 4_000 < 0.06
    assert set(Counter(row["form"] for row in truth)) == set(FORMS)
    assert {row["task"] for row in truth} == {task for task, _, _ in TASKS["micro-dev"]}


@pytest.mark.parametrize("suite", list(TASKS))
def test_a_leak_is_found_by_the_rule_when_its_form_keeps_the_words(suite, references, runs):
    leaks = Leaks(rate=1.0, suite=suite)
    arguments = {"kind": "stories", "count": 3_000, "seed": 6}
    found, seen = Counter(), Counter()
    for row, true in zip(
        documents(**arguments, leaks=leaks), planted(**arguments, leaks=leaks), strict=True
    ):
        assert row["id"] == true["document_id"]
        assert true["suite"] == suite
        hit = hits(row["text"], references, runs)
        assert hit <= {(true["task"], true["doc_id"])}
        seen[true["form"]] += 1
        found[true["form"]] += bool(hit)
    for form in ("verbatim", "case_punctuation", "embedded", "wrapped"):
        assert found[form] == seen[form] > 200
    assert found["partial_75"] > 0.5 * seen["partial_75"]
    assert found["partial_30"] == 0
    assert found["rephrased"] == 0


def test_partial_stands_for_its_three_shares_and_rate_0_plants_nothing():
    leaks = Leaks(rate=0.5, forms=("partial",), suite="micro-unseen")
    truth = planted("facts", count=500, seed=0, leaks=leaks)
    assert {row["form"] for row in truth} == set(PARTIAL)
    assert planted("facts", count=500, seed=0, leaks=Leaks(rate=0.0)) == []


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0, 1), count=st.integers(0, 60), more=st.integers(0, 60))
def test_the_ground_truth_does_not_depend_on_the_count(rate, count, more):
    leaks = Leaks(rate=rate)
    short = planted("code", count=count, seed=1, leaks=leaks)
    assert planted("code", count=count + more, seed=1, leaks=leaks)[: len(short)] == short


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"rate": 1.5}, "rate is 1.5"),
        ({"rate": 0.1, "forms": ("verbatm",)}, "did you mean 'verbatim'"),
        ({"rate": 0.1, "forms": ()}, "forms is empty"),
        ({"rate": 0.1, "suite": "micro-def"}, "did you mean 'micro-dev'"),
    ],
)
def test_wrong_leaks_are_refused_in_one_line(wrong, complaint):
    with pytest.raises(UserError, match=complaint):
        Leaks(**wrong)
