"""A user's files become canonical shards, or one line that says which row is wrong and why."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from decon.clean import clean
from decon.index import build_index
from decon.policy import load_policy
from evalsuite.errors import UserError
from evalsuite.files import read_jsonl
from evalsuite.records import Reference
from trainloop import model as models
from trainloop import sources
from trainloop.records import Model, Source

TURN = {"role": "user", "content": "two and two ?"}


def made(folder: Path, file: str = "a.jsonl", **source: Any) -> list[dict[str, Any]]:
    """The canonical rows of a source of one file in `folder`."""
    shards = sources.materialise(
        "a", Source(files=[file], **source), root=folder / "runs", base=folder, mirror=None
    )
    return [row for shard in shards.files for _, row in read_jsonl(shard)]


def refused(folder: Path, file: str = "a.jsonl", **source: Any) -> str:
    """The one line that the source of one file in `folder` ends with; nothing half-written."""
    with pytest.raises(UserError) as caught:
        made(folder, file, **source)
    assert "\n" not in str(caught.value)
    assert list((folder / "runs" / "sources").iterdir()) == []
    return str(caught.value)


def write_rows(folder: Path, *rows: dict[str, Any]) -> None:
    """`rows` as a.jsonl."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("thinking", "The answer is 4."),
        ("tool_calls", [{"function": {"name": "add", "arguments": {"a": "2"}}}]),
    ],
)
def test_text_of_a_message_that_decontamination_would_not_read_is_an_error(key, value, tmp_path):
    write_rows(tmp_path, {"messages": [TURN]}, {"messages": [TURN | {key: value}]})
    line = refused(tmp_path)
    assert f"{tmp_path / 'a.jsonl'}:2: source 'a': a message has text in {key!r}" in line
    assert "remove the field" in line and "prompt and response" in line


def test_keys_of_a_message_without_text_are_kept(tmp_path):
    turn = TURN | {"thinking": None, "tool_calls": [], "name": "", "weight": 1}
    write_rows(tmp_path, {"messages": [turn]})
    assert made(tmp_path) == [{"id": "a-1", "messages": [turn]}]


def test_a_conversation_without_a_turn_is_an_error(tmp_path):
    write_rows(tmp_path, {"messages": [TURN]}, {"messages": []})
    line = refused(tmp_path)
    assert f"{tmp_path / 'a.jsonl'}:2: source 'a': 'messages' is empty; remove the row" in line


def parquet(**columns: Any) -> bytes:
    """A Parquet file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


WHOLE = b"one line of text\n" * 500
PARQUET = parquet(text=["one", "two"])
BAD_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")]
)
DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "latin-1 text": ("a.txt", "caf\u00e9".encode("latin-1"), "not UTF-8 text (byte 0xe9 at 3)"),
    "a gzip that is none": ("a.txt.gz", WHOLE, "damaged or cut short"),
    "a gzip cut short": ("a.txt.gz", gzip.compress(WHOLE)[:-20], "damaged or cut short"),
    "a bzip2 cut short": ("a.txt.bz2", bz2.compress(WHOLE)[:-20], "damaged or cut short"),
    "an xz cut short": ("a.txt.xz", lzma.compress(WHOLE)[:-20], "damaged or cut short"),
    "an xz that is none": ("a.txt.xz", WHOLE, "damaged or cut short"),
    "a zstd cut short": ("a.txt.zst", zstandard.compress(WHOLE)[:-4], "damaged or cut short"),
    "a zstd that is none": ("a.txt.zst", WHOLE, "damaged or cut short"),
    "parquet that is none": ("a.parquet", WHOLE, "cannot be read as Parquet"),
    "parquet without its end": ("a.parquet", PARQUET[:-9], "cannot be read as Parquet"),
    "parquet with broken pages": (
        "a.parquet",
        PARQUET[:4] + b"\xff" * 40 + PARQUET[44:],
        "cannot be read as Parquet",
    ),
    "parquet of latin-1": ("a.parquet", parquet(text=BAD_UTF8), "cannot be read as Parquet"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_of(damage, tmp_path):
    """...is one line that names the file."""
    file, content, words = DAMAGED[damage]
    (tmp_path / file).write_bytes(content)
    line = refused(tmp_path, file)
    assert line.startswith(f"{tmp_path / file}: ")
    assert words in line and ("make " in line or "save it as UTF-8" in line)


def test_whole_files_of_each_kind_are_read(tmp_path):
    text = WHOLE.decode()[:400]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.parquet").write_bytes(PARQUET)
    assert made(tmp_path, "a.txt.gz") == [{"id": "a-1", "text": text}]
    assert [row["text"] for row in made(tmp_path, "a.parquet")] == ["one", "two"]


@pytest.mark.parametrize(
    "row",
    [{"text": "half \ud83d"}, {"id": "\ud83d", "text": "x"}, {"messages": [TURN | {"\ud83d": 1}]}],
)
def test_a_lone_surrogate_is_an_error_that_names_the_line(row, tmp_path):
    write_rows(tmp_path, {"text": "x \U0001f600"} if "text" in row else {"messages": [TURN]}, row)
    line = refused(tmp_path)
    assert line.startswith(f"{tmp_path / 'a.jsonl'}:2: the row holds \\ud83d, half of a character")
    assert line.endswith("mend or remove the row")
    line.encode()


def test_a_number_that_json_cannot_hold_is_an_error_that_names_the_line(tmp_path):
    write_rows(tmp_path, {"messages": [TURN]}, {"messages": [TURN | {"weight": float("nan")}]})
    line = refused(tmp_path)
    assert line.startswith(f"{tmp_path / 'a.jsonl'}:2: the row holds a value that JSON cannot hold")


@pytest.mark.parametrize(
    ("value", "words"),
    [("NaN", "a value that JSON cannot hold"), ('"\\ud83d"', "\\ud83d, half of a character")],
)
def test_a_mirrors_row_that_json_cannot_hold_is_an_error_that_names_it(value, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two", "x": ' + value + "}\n")
    entry = {"names": ["me/mine"], "splits": {"train": "rows.jsonl"}, "format": "jsonl"}
    (tmp_path / "mirror.yaml").write_text(yaml.safe_dump({"sets": [entry]}))
    with pytest.raises(UserError) as caught:
        sources.materialise(
            "a", Source(hub="me/mine"), root=tmp_path / "runs", base=tmp_path, mirror=tmp_path
        )
    assert str(caught.value).startswith(f"me/mine:train:2: the row holds {words}")


def weights_id(folder: Path) -> str:
    """The id of the pretrained weights in `folder`."""
    return models.start_id(Model(path="weights"), folder, [], seed=0)


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_a_model_with_another_file_that_decides_its_tokens_is_another_start(file, tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    without = weights_id(tmp_path)
    (tmp_path / file).write_text("one")
    one = weights_id(tmp_path)
    (tmp_path / file).write_text("two")
    assert len({without, one, weights_id(tmp_path)}) == 3


@pytest.mark.parametrize(
    "file", ["checkpoint.json", "manifest.json", "optimizer.safetensors", "README.md", "x.bin"]
)
def test_a_file_that_decides_nothing_leaves_the_start_as_it_is(file, tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    before = weights_id(tmp_path)
    (tmp_path / file).write_text("one")
    assert weights_id(tmp_path) == before


GOOD, BAD = ({"role": "assistant", "content": content} for content in ("four", "five"))
PAIR = {"messages": [TURN], "chosen": "four", "rejected": "five"}
SYSTEM = {"role": "system", "content": "Be brief."}

PUBLIC_PAIRS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "canonical": (PAIR, [TURN]),
    "texts after a prompt": ({"prompt": TURN["content"]} | PAIR | {"messages": None}, [TURN]),
    "tulu 3": (
        {"source": "x", "chosen": [TURN, GOOD], "rejected": [TURN, BAD], "chosen_model": "m"},
        [TURN],
    ),
    "ultrafeedback": (
        {
            "prompt": TURN["content"],
            "messages": [TURN, GOOD],
            "chosen": [SYSTEM, TURN, GOOD],
            "rejected": [SYSTEM, TURN, BAD],
        },
        [SYSTEM, TURN],
    ),
    "answers after a list of turns": (
        {"prompt": [SYSTEM, TURN], "chosen": [GOOD], "rejected": [BAD]},
        [SYSTEM, TURN],
    ),
    "answers after a text": (
        {"prompt": TURN["content"], "chosen": [GOOD], "rejected": [BAD]},
        [TURN],
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: two and two ?\n\nAssistant: four",
            "rejected": "\n\nHuman: two and two ?\n\nAssistant: five",
        },
        [TURN],
    ),
}


@pytest.mark.parametrize("form", PUBLIC_PAIRS)
def test_pairs_of_each_public_form_have_one_shape(form, tmp_path):
    row, asked = PUBLIC_PAIRS[form]
    write_rows(tmp_path, row)
    assert made(tmp_path) == [PAIR | {"id": "a-1", "messages": asked}]


def test_real_pairs_of_hh_rlhf_are_read_and_what_cannot_teach_is_counted(shared, tmp_path):
    path = shared / "data" / "hh_rlhf" / "harmless-base_test.jsonl.gz"
    shards = sources.materialise(
        "a", Source(files=[str(path)]), root=tmp_path / "runs", base=tmp_path, mirror=None
    )
    assert (shards.documents, shards.left_out) == (
        2303,
        {"an answer is empty": 4, "the answers part before their last turn": 5},
    )
    rows = [row for shard in shards.files for _, row in read_jsonl(shard)]
    with gzip.open(path, "rt") as file:
        first = json.loads(next(file))
    turns = [f"{turn['role']}: {turn['content']}" for turn in rows[0]["messages"]]
    told = "\n\n" + "\n\n".join([*turns, "assistant: " + rows[0]["rejected"]])
    assert told.replace("user:", "Human:").replace("assistant:", "Assistant:") == first["rejected"]
    assert {turn["role"] for row in rows for turn in row["messages"]} == {"user", "assistant"}


UNUSABLE = {
    "both answers are the same": {"chosen": [TURN, GOOD], "rejected": [TURN, GOOD]},
    "an answer is empty": PAIR | {"rejected": " "},
    "the answers part before their last turn": {
        "chosen": [TURN, GOOD, TURN, GOOD],
        "rejected": [TURN, BAD],
    },
    "the last turn is not the assistant's": {"chosen": [TURN, TURN], "rejected": [TURN, SYSTEM]},
    "no user's turn stands before the answer": {"chosen": [GOOD], "rejected": [BAD]},
    "the user's turn is empty": PAIR | {"messages": [TURN | {"content": ""}]},
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_a_pair_that_cannot_teach_is_left_out_and_counted(why, tmp_path):
    write_rows(tmp_path, PAIR, UNUSABLE[why])
    shards = sources.materialise(
        "a", Source(files=["a.jsonl"]), root=tmp_path / "runs", base=tmp_path, mirror=None
    )
    assert (shards.documents, shards.left_out) == (1, {why: 1})


def test_a_source_of_which_nothing_can_be_used_says_why(tmp_path):
    write_rows(tmp_path, *[PAIR | {"rejected": "four"}] * 3)
    line = refused(tmp_path)
    assert "source 'a' holds no document (3 rows: both answers are the same)" in line


def test_templates_make_pairs_and_prompts_of_any_fields(tmp_path):
    write_rows(tmp_path, {"q": "two and two ?", "good": "four", "bad": "five", "n": 4})
    pair = {"prompt": "{q}", "chosen": "{good}", "rejected": "{bad}"}
    assert made(tmp_path, **pair) == [PAIR | {"id": "a-1"}]
    [prompt] = made(tmp_path, prompt="{q}", answer="{n}", verifier="gsm8k")
    assert prompt == {
        "id": "a-1",
        "messages": [TURN],
        "answer": "4",
        "verifier": "gsm8k",
        "doc": {"q": "two and two ?", "good": "four", "bad": "five", "n": 4},
    }


IFEVAL = {
    "prompt": "two and two ?",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}
PROMPTS: dict[str, tuple[str, dict[str, Any], str | list[str], dict[str, Any]]] = {
    "gsm8k": ("gsm8k", {"prompt": "two and two ?", "answer": "so 4 #### 4"}, "so 4 #### 4", {}),
    "a number": ("gsm8k", {"messages": [TURN], "answer": 4}, "4", {}),
    "ground truth": ("gsm8k", {"messages": [TURN], "ground_truth": "4"}, "4", {}),
    "several answers": ("match", {"messages": [TURN], "answer": ["4", "four"]}, ["4", "four"], {}),
    "math": ("mathematics", {"messages": [TURN], "answer": r"\boxed{4}"}, r"\boxed{4}", {}),
    "instructions": ("ifeval", IFEVAL, "", IFEVAL),
    "tests": (
        "programs",
        {"messages": [TURN], "doc": {"tests": "assert two() == 2"}},
        "",
        {"tests": "assert two() == 2"},
    ),
}


@pytest.mark.parametrize("form", PROMPTS)
def test_prompts_carry_what_their_verifier_judges_by(form, tmp_path):
    verifier, row, answer, doc = PROMPTS[form]
    write_rows(tmp_path, row, row | {"id": "mine", "verifier": verifier})
    first, second = made(tmp_path, verifier=verifier)
    assert first["messages"] == [TURN]
    assert (first["answer"], first["verifier"]) == (answer, verifier)
    assert doc.items() <= first["doc"].items()
    assert second == first | {"id": "mine"}
    write_rows(tmp_path, row | {"id": "mine", "verifier": verifier})
    assert made(tmp_path) == [second]


WRONG_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, {}, "texts without a 'prompt' or 'messages'"),
    "a list and a text": (
        {"chosen": [TURN, GOOD], "rejected": "b"},
        {},
        "'chosen' is a list and 'rejected' a str",
    ),
    "no content": ({"chosen": [TURN, {"role": "x"}], "rejected": []}, {}, "each of 'chosen' needs"),
    "hidden text": (
        {"chosen": [TURN, GOOD | {"thinking": "hm"}], "rejected": [TURN, BAD]},
        {},
        "a message has text in 'thinking'",
    ),
    "no gold number": (
        {"prompt": "a ?", "answer": "many"},
        {"verifier": "gsm8k"},
        "cannot judge by this row: ValueError: the gold answer 'many' is no number",
    ),
    "no instructions": (
        {"prompt": "a ?", "instructions": []},
        {"verifier": "ifeval"},
        "verifier 'ifeval' reads 'instruction_id_list' of a row's 'doc', which has",
    ),
    "an unknown verifier": (
        {"prompt": "a ?", "answer": "4"},
        {"verifier": "gsm9k"},
        "verifier 'gsm9k' is not there; did you mean 'gsm8k'?",
    ),
    "an answer that is a dict": (
        {"prompt": "a ?", "answer": {"value": 4}},
        {"verifier": "gsm8k"},
        "'answer' is \"{'value': 4}\", but must be a text, a number or a list of texts",
    ),
    "an answer without a prompt": (
        {"question": "a ?", "answer": "4"},
        {"verifier": "gsm8k"},
        "needs 'messages' or 'prompt', but has 'question', 'answer'",
    ),
    "null in a template": (
        {"q": None, "a": "4"},
        {"prompt": "{q}", "answer": "{a}", "verifier": "gsm8k"},
        "field 'q' is null, but a template takes texts and numbers",
    ),
    "messages in a template": (
        {"q": [TURN], "a": "4"},
        {"prompt": "{q}", "response": "{a}"},
        "field 'q' is a list, but a template takes texts and numbers",
    ),
    "nothing known": ({"body": "a"}, {}, "'chosen' and 'rejected', or a verifier, but the row has"),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_a_wrong_row_is_one_line_that_names_it(wrong, tmp_path):
    row, keys, words = WRONG_ROWS[wrong]
    write_rows(tmp_path, row)
    line = refused(tmp_path, **keys)
    assert line.startswith(f"{tmp_path / 'a.jsonl'}:1: ")
    assert words in line


def test_a_source_holds_documents_of_one_shape(tmp_path):
    write_rows(tmp_path, {"text": "one"}, {"text": "two"}, PAIR)
    line = refused(tmp_path)
    assert f"{tmp_path / 'a.jsonl'}:3: source 'a': the row is a pair, but a text stands" in line


LEAK = "Bado has 5 , gains 2 . Bado loses 3 , finds 9 . How many has Bado ?"
OWN = "What is left of nine apples ?"
LEAKY = {
    "chosen": PAIR | {"chosen": LEAK},
    "rejected": PAIR | {"rejected": LEAK},
    "the prompt of a pair": PAIR | {"messages": [TURN | {"content": LEAK}]},
    "a message of chosen": {"chosen": [TURN, GOOD | {"content": LEAK}], "rejected": [TURN, BAD]},
    "a transcript": {
        "chosen": f"\n\nHuman: {OWN}\n\nAssistant: four",
        "rejected": f"\n\nHuman: {OWN}\n\nAssistant: {LEAK}",
    },
    "a prompt": {"prompt": LEAK, "answer": "4", "verifier": "gsm8k"},
    "an answer": {"prompt": OWN, "answer": f"{LEAK} #### 4", "verifier": "gsm8k"},
    "one of several answers": {"prompt": OWN, "answer": ["4", LEAK], "verifier": "match"},
    "a test in doc": {
        "prompt": OWN,
        "verifier": "programs",
        "doc": {"tests": "assert f() == 1", "more": [{"why": LEAK}]},
    },
    "another field": {"prompt": OWN, "answer": "4", "verifier": "gsm8k", "worked": [LEAK]},
}


@pytest.mark.parametrize("where", LEAKY)
def test_a_leak_is_found_and_its_row_removed_when_it_stands_in(where, tmp_path):
    leaky = LEAKY[where]
    plain = json.loads(json.dumps(leaky).replace(json.dumps(LEAK)[1:-1], f"{OWN} It is #### 4"))
    write_rows(tmp_path, plain, leaky | {"id": "leaky"}, plain)
    shards = sources.materialise(
        "a", Source(files=["a.jsonl"]), root=tmp_path / "runs", base=tmp_path, mirror=None
    )
    reference = Reference(suite="s", task="t", doc_id=0, field="question", text=LEAK)
    index = build_index([reference], policy=load_policy("tulu3"), suites={"s": "1"})
    made = clean({"a": list(shards.files)}, index, tmp_path / "clean")
    assert (made.sources["a"].read, made.sources["a"].removed) == (3, 1)
    [kept] = [tmp_path / "clean" / file for file in made.clean["a"]]
    assert [row["id"] for _, row in read_jsonl(kept)] == ["a-1", "a-3"]
