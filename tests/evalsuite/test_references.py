"""References: the docs the suite scores, as lm-eval renders them, without the task's own words."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import CHOICE, GOLD, MEAN, SUMS, TEXT, WRITTEN

from evalsuite import harness
from evalsuite import references as references_module
from evalsuite.harness import Doc
from evalsuite.records import Task
from evalsuite.references import _texts, references
from evalsuite.suites import load_suite


def texts_of(toys, *tasks, suite=None):
    """(task, doc_id) -> {(field, text)}."""
    found: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for one in references(suite or toys.suite(*tasks), mirror=toys.mirror):
        found.setdefault((one.task, one.doc_id), set()).add((one.field, one.text))
    return found


def test_every_doc_gives_its_question_choices_and_answer(sums):
    found = texts_of(sums, WRITTEN)
    assert found["sums_written", 0] == {("question", "1 + 1"), ("answer", "2")}
    assert len(found) == len(SUMS)
    assert texts_of(sums, GOLD)["sums_gold", 3] == {("question", "2 + 1"), ("answer", "3")}
    assert texts_of(sums, TEXT)["sums_text", 3] == {("passage", "2 + 1 = 3")}


def test_choices_that_all_docs_share_are_no_references(sums):
    assert texts_of(sums, CHOICE)["sums_choice", 0] == {("question", "1 + 1"), ("answer", "2")}


def test_references_follow_the_split_and_the_cap_and_leave_few_shots_out(sums):
    task = dataclasses.replace(WRITTEN, docs=3, shots=2)
    found = texts_of(sums, task)
    assert sorted(doc for _, doc in found) == [0, 1, 2]
    assert not any("9 + 1" in text for texts in found.values() for _, text in texts)
    train = texts_of(sums, dataclasses.replace(WRITTEN, split="train", docs=1))
    assert train["sums_written", 0] == {("question", "9 + 1"), ("answer", "10")}


@pytest.mark.parametrize("second", ["What is the tenth prime", " What is the tenth prime\n"])
def test_fields_alike_but_for_outer_whitespace_give_one_reference(toys, second):
    row = {"question": "What is the tenth prime ", "again": second, "answer": "29"}
    toys.data("toy/twice", test=[row])
    toys.task(
        "twice",
        dataset_path="toy/twice",
        test_split="test",
        output_type="generate_until",
        doc_to_text="Q: {{question}}\nOnce more: {{again}}\nA:",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", **MEAN}],
    )
    found = texts_of(toys, Task(task="twice", metric="exact_match"))
    assert found["twice", 0] == {("question", "What is the tenth prime"), ("answer", "29")}


def test_the_tasks_own_preamble_is_left_off_and_a_passage_is_told_apart(toys):
    row = {
        "passage": "The mill by the river burned down.",
        "question": "What burned down last night?",
        "options": ["the old mill", "the new bridge"],
        "right": 0,
    }
    toys.data("toy/read", test=[row, row | {"options": ["a", "b"]}])
    toys.task(
        "read",
        dataset_path="toy/read",
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="Q: Who sings? A: The choir.\n{{passage}}\nQ: {{question}} A:",
        doc_to_choice="options",
        doc_to_target="right",
        metric_list=[{"metric": "acc", **MEAN}],
    )
    assert texts_of(toys, Task(task="read", metric="acc"))["read", 0] == {
        ("passage", "The mill by the river burned down."),
        ("question", "What burned down last night?"),
        ("choice", "the old mill"),
        ("choice", "the new bridge"),
        ("answer", "the old mill"),
    }


@given(
    question=st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=3, max_size=9),
    before=st.text("xyz :\n", max_size=20),
    after=st.text("xyz :\n", max_size=20),
)
def test_a_question_is_found_inside_whatever_frame_a_task_puts_around_it(question, before, after):
    asked = " ".join(question)
    doc = Doc(
        capability="",
        task="t",
        doc_id=0,
        doc={"question": asked, "answer": "7"},
        text=f"{before}{asked}{after}",
        choices=[],
        target="7",
        rolling=False,
    )
    assert list(_texts(doc, set())) == [("question", asked), ("answer", "7")]


def test_a_prompt_that_hides_its_fields_stays_one_text(toys):
    toys.data("toy/loud", test=[{"question": "who burned the mill", "answer": "Bo"}] * 2)
    toys.task(
        "loud",
        dataset_path="toy/loud",
        test_split="test",
        output_type="generate_until",
        doc_to_text="{{question.upper()}} ?",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "exact_match", **MEAN}],
    )
    found = texts_of(toys, Task(task="loud", metric="exact_match"))
    assert ("question", "WHO BURNED THE MILL ?") in found["loud", 0]


def test_real_references_are_the_texts_of_the_sets_themselves(shared):
    suite = load_suite("real-small")
    found = references(suite, mirror=shared)
    raw = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").open(encoding="utf-8")]
    caps = {task.task: task.docs for _, task in suite.tasks}
    for name in ("gsm8k_short", "gsm8k_answer_bpb"):
        assert caps[name] >= 50
        for field, key in (("question", "question"), ("answer", "answer")):
            texts = [one.text for one in found if (one.task, one.field) == (name, field)]
            assert texts == [row[key].strip() for row in raw[: caps[name]]]
    assert not any("square root of banana" in one.text for one in found)
    mmlu = {one.text for one in found if (one.task, one.doc_id) == ("mmlu_anatomy", 0)}
    assert "paralysis of the facial muscles and loss of taste." in mmlu


def test_each_doc_of_every_shipped_suite_has_a_reference(shared):
    for name in ("micro-dev", "micro-unseen", "real-small"):
        suite = load_suite(name)
        docs = {(doc.task, doc.doc_id) for doc in harness.docs(suite, mirror=shared)}
        found = {(one.task, one.doc_id) for one in references(suite, mirror=shared)}
        assert found == docs
        assert all(one.suite == name for one in references(suite, mirror=shared)[:3])


@pytest.mark.parametrize("task", [WRITTEN, CHOICE])
def test_references_need_no_model(sums, task):
    assert references(sums.suite(task), mirror=sums.mirror)


def test_a_long_text_is_given_as_passages_that_together_are_all_of_it():
    words = [f"w{n}" for n in range(3000)]
    pieces = list(references_module._windows("passage", " ".join(words)))
    assert [field for field, _ in pieces] == ["passage"] * len(pieces)
    assert " ".join(text.strip() for _, text in pieces).split() == words
    assert all(len(text) <= references_module.WINDOW for _, text in pieces)
    short = "x " * 100
    assert list(references_module._windows("passage", short)) == [("passage", short)]
    first, *rest = references_module._windows("question", " ".join(words))
    assert first == ("question", " ".join(words)) and rest == pieces
