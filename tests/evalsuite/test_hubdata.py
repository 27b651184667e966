"""Rows by their hub name: from a mirror in the hub's own columns, else one line that helps."""

from __future__ import annotations

import json

import pytest

from evalsuite import hubdata
from evalsuite.errors import UserError
from evalsuite.hubdata import load_map, rows


def test_every_entry_of_the_shipped_map_reads_what_lies_in_the_shared_folder(shared):
    examples = {
        "cais/mmlu": "anatomy",
        "lukaemon/bbh": "navigate",
        "gutenberg/books": "alice",
        "juletxara/mgsm": "de",
    }
    read = 0
    for entry in load_map(None).sets:
        config = entry.config if entry.config != "*" else examples.get(entry.names[0], "any")
        for split in entry.splits:
            for name in entry.names:
                assert rows(name, config, split, mirror=shared)
                read += 1
    assert read > 30


@pytest.mark.parametrize(
    ("name", "config", "split", "count", "first"),
    [
        ("openai/gsm8k", "main", "test", 1319, {"question", "answer"}),
        ("cais/mmlu", "anatomy", "test", 135, {"question", "subject", "choices", "answer"}),
        ("lukaemon/bbh", "navigate", "test", 250, {"input", "target"}),
        (
            "truthfulqa/truthful_qa",
            "multiple_choice",
            "validation",
            817,
            {"question", "mc1_targets", "mc2_targets"},
        ),
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", 60, {"page"}),
        ("karpathy/tiny_shakespeare", None, "train", 1, {"text"}),
        ("google-research-datasets/mbpp", "full", "test", 500, None),
    ],
)
def test_mirrored_rows_have_the_hubs_count_and_columns(shared, name, config, split, count, first):
    found = rows(name, config, split, mirror=shared)
    assert len(found) == count
    if first is not None:
        assert all(row.keys() == first for row in found)


def test_mmlu_and_truthfulqa_take_the_hubs_form(shared):
    row = rows("cais/mmlu", "abstract_algebra", "test", mirror=shared)[0]
    assert row["choices"] == ["0", "4", "2", "6"]
    assert row["answer"] == 1
    row = rows("truthfulqa/truthful_qa", "multiple_choice", "validation", mirror=shared)[0]
    assert row["mc1_targets"]["labels"] == [1] + [0] * 7
    assert row["mc1_targets"]["choices"][0].startswith("The watermelon seeds pass")
    assert sum(row["mc2_targets"]["labels"]) == 5


def test_cut_texts_lose_nothing(shared):
    raw = (shared / "data/wikitext2/test.txt").read_text(encoding="utf-8")
    pages = rows("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", mirror=shared)
    assert "".join(row["page"] for row in pages).strip() == raw.strip()
    lines = rows("Salesforce/wikitext", "wikitext-2-raw-v1", "test", mirror=shared)
    assert "".join(row["text"] for row in lines).split() == raw.split()
    raw = (shared / "data/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    parts = [
        rows("karpathy/tiny_shakespeare", None, split, mirror=shared)[0]["text"]
        for split in ("train", "validation", "test")
    ]
    assert "".join(parts) == raw
    book = rows("gutenberg/books", "alice", "train", mirror=shared)
    assert "Gutenberg License" not in "".join(row["text"] for row in book)
    assert len({row["id"] for row in book}) == len(book)


def write_map(folder, **entry):
    text = json.dumps({"sets": [{"names": ["a/b"], "splits": {"test": "t.jsonl"}, **entry}]})
    (folder / "mirror.yaml").write_text(text)


def test_a_mirrors_own_map_comes_before_the_shipped_one(tmp_path):
    write_map(tmp_path, format="jsonl", rename={"q": "question"})
    (tmp_path / "t.jsonl").write_text('{"q": "why?", "x": 1}\n')
    assert rows("a/b", None, "test", mirror=tmp_path) == [{"question": "why?", "x": 1}]
    assert rows("a/b", "default", "test", mirror=tmp_path)
    with pytest.raises(UserError, match="'other'"):
        rows("a/b", "other", "test", mirror=tmp_path)
    write_map(tmp_path, format="csv")
    (tmp_path / "t.jsonl").write_text('q,x\n"two\nlines",1\n')
    assert rows("a/b", None, "test", mirror=tmp_path) == [{"q": "two\nlines", "x": "1"}]


@pytest.mark.parametrize(
    ("entry", "text", "message"),
    [
        ({"format": "jsonl"}, '{"q": 1}\n{"q": \n', r"t\.jsonl:2: not valid JSON lines"),
        ({"format": "jsonl"}, "", r"t\.jsonl holds no rows"),
        ({"format": "json", "key": "rows"}, '{"other": []}', "no list of objects under key 'rows'"),
        ({"format": "json"}, "{", "not valid JSON"),
        ({"format": "csv"}, "a,b\n1\n", "row 1 has 1 columns where 2 are needed"),
        ({"format": "jsonl", "shape": "mmul"}, "{}", "did you mean 'mmlu'"),
        ({"format": "jsonl", "renam": {}}, "{}", "unknown key 'renam'.*did you mean 'rename'"),
        ({"format": "jsonl"}, None, r"lacks t\.jsonl; put the file there"),
    ],
)
def test_a_broken_mirror_is_one_line_that_names_the_file(tmp_path, entry, text, message):
    write_map(tmp_path, **entry)
    if text is not None:
        (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        rows("a/b", None, "test", mirror=tmp_path)
    assert "\n" not in str(raised.value)


def test_without_mirror_and_network_the_error_says_what_to_fetch(tmp_path):
    for mirror in (None, tmp_path):
        with pytest.raises(UserError) as raised:
            rows("some/set", "main", "test", mirror=mirror)
        text = str(raised.value)
        for part in ("'some/set'", "'main'", "'test'", "--mirror", "ASSAY_MIRROR"):
            assert part in text
        assert "\n" not in text


def test_a_set_no_hub_has_says_where_it_comes_from():
    with pytest.raises(UserError, match=r"no hub data set: fetch it from www\.gutenberg\.org"):
        rows("gutenberg/books", "alice", "train", mirror=None)


def test_a_mirror_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        rows("a/b", None, "test", mirror=tmp_path / "missing")


def test_the_micro_world_needs_neither_mirror_nor_network():
    assert rows("assay/microworld", "micro_math", "dev", mirror=None)
    with pytest.raises(UserError, match="micro_math"):
        rows("assay/microworld", "micro_mat", "dev", mirror=None)


def test_a_model_is_a_folder_or_the_mirrors_copy_of_a_name(shared, tmp_path):
    name, folder = "karpathy/tinyllamas-stories260K", shared / "models" / "stories260K"
    assert hubdata.model_folder(name, base=tmp_path, mirror=shared) == folder
    assert hubdata.model_folder("stories260K", base=folder.parent, mirror=None) == folder
    with pytest.raises(UserError, match="no hub name"):
        hubdata.model_folder("gone", base=tmp_path, mirror=shared)
    (tmp_path / "mirror.yaml").write_text("sets: []\nmodels: {a/b: models/b}\n")
    with pytest.raises(UserError, match="lacks models/b"):
        hubdata.model_folder("a/b", base=tmp_path, mirror=tmp_path)


def test_a_changed_mirror_has_another_stamp(tmp_path):
    (tmp_path / "mirror.yaml").write_text("sets: []\n")
    (tmp_path / "a.jsonl").write_text("{}\n")
    before = hubdata.mirror_stamp(tmp_path)
    assert hubdata.mirror_stamp(tmp_path) == before
    (tmp_path / "a.jsonl").write_text('{"b": 1}\n')
    assert hubdata.mirror_stamp(tmp_path) != before
    assert hubdata.mirror_stamp(None) is None
