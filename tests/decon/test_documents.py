"""Shards in: formats, fields, and what is no document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decon_parts import WRITERS, jsonl

from decon.documents import read, shards
from decon.records import Document, Malformed
from evalsuite.errors import UserError


def documents(path: Path, *fields: str) -> list[Document | Malformed]:
    [shard] = shards("data", [path], fields)
    return [document for document, _ in read(shard)]


def text_of(path: Path, row: dict[str, Any], *fields: str) -> str:
    [document] = documents(jsonl(path / "row.jsonl", [row]), *fields)
    assert isinstance(document, Document)
    return document.text


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_json_lines_read_alike_under_every_compression(tmp_path: Path, ending: str) -> None:
    rows = [{"id": f"d{i}", "text": f"text {i} é"} for i in range(3)]
    found = documents(jsonl(tmp_path / f"a.jsonl{ending}", rows))
    assert found == [Document(line=i + 1, id=f"d{i}", text=f"text {i} é") for i in range(3)]


def test_parquet_rows_and_text_files_are_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), tmp_path / "a.parquet")
    found = documents(tmp_path / "a.parquet")
    assert found == [Document(line=1, id="1", text="one"), Document(line=2, id="2", text="two")]
    (tmp_path / "b.txt").write_text("line one\nline two\n")
    assert documents(tmp_path / "b.txt") == [
        Document(line=1, id="b.txt", text="line one\nline two\n")
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "a", "source": "x"}, "a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": "b"}]}, "a\n\nb"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "a"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a", "reasoning_content": "d", "weight": 1},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"function": {"name": "e", "arguments": {"x": [None, "f", " "]}}}
                        ],
                    },
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "g"},
                            {"type": "text", "text": "b"},
                        ],
                    },
                    {"role": "assistant", "thinking": "h", "content": "c"},
                ]
            },
            "a\n\nb\n\nc\n\nd\n\ne\n\nf\n\ng\n\nh",
        ),
        ({"messages": [{"role": "assistant", "thinking": "only this"}]}, "only this"),
        ({"prompt": "a", "completion": "b"}, "a\n\nb"),
        ({"question": "a", "answer": "b"}, "a\n\nb"),
        ({"instruction": "a", "input": None, "output": "b"}, "a\n\nb"),
        ({"chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}, "a\n\nb"),
    ],
)
def test_known_fields_are_read_without_being_named(
    tmp_path: Path, row: dict[str, Any], text: str
) -> None:
    assert text_of(tmp_path, row) == text


def test_a_named_field_replaces_the_known_ones(tmp_path: Path) -> None:
    assert text_of(tmp_path, {"body": "a", "text": "b"}, "body") == "a"


def test_a_wrong_field_names_file_line_and_the_fields_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["fine", {"body": "x", "url": "y"}])
    with pytest.raises(UserError, match=r"a\.jsonl:2: .*body, url.*--field"):
        documents(path)
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*none of the fields boddy.*has: text"):
        documents(path, "boddy")


def test_lines_that_are_no_documents_are_told_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "ok"}\n\n{"text": \n[1]\n{"text": 5}\n{"text": null}\n{"text": "\xff"}\n'
        b'{"text": "last"}'
    )
    found = documents(path)
    assert [(d.line, type(d).__name__) for d in found] == [
        (1, "Document"), (3, "Malformed"), (4, "Malformed"), (5, "Malformed"),
        (6, "Malformed"), (7, "Malformed"), (8, "Document"),
    ]  # fmt: skip
    assert "text" in found[3].problem and "int" in found[3].problem  # type: ignore[union-attr]


def test_half_a_surrogate_pair_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    assert documents(path) == [Document(line=1, id="1", text="a \ud800 b")]


@pytest.mark.parametrize("ending", [e for e in sorted(WRITERS) if e])
def test_a_compressed_file_cut_short_is_an_error_that_names_the_line(
    tmp_path: Path, ending: str
) -> None:
    rows = [{"text": f"{i} " + "".join(chr(97 + i * k * k % 26) for k in range(500))}
            for i in range(2000)]  # fmt: skip
    path = jsonl(tmp_path / f"a.jsonl{ending}", rows)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"a\.jsonl{ending}:\d+: .*cut short"):
            documents(path)
    path.write_bytes(b"this is not compressed at all")
    with pytest.raises(UserError, match="damaged"):
        documents(path)


def test_all_frames_of_a_zst_file_are_read(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path / "1.jsonl.zst", ["one"]), jsonl(tmp_path / "2.jsonl.zst", ["two"])
    both = tmp_path / "both.jsonl.zst"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert [d.text for d in documents(both)] == ["one", "two"]  # type: ignore[union-attr]


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet.*not a whole Parquet"):
        documents(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.parquet"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name}: the file is empty"):
        shards("data", [tmp_path / name])


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_file_without_a_document_is_an_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(WRITERS[ending](b"\n \n"))
    with pytest.raises(UserError, match="holds no document"):
        documents(path)


def test_a_missing_an_unknown_and_a_doubled_file_are_errors(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "b.pdf").write_text("x")
    with pytest.raises(UserError, match=r"c\.jsonl: no such file"):
        shards("data", [tmp_path / "c.jsonl"])
    with pytest.raises(UserError, match=r"b\.pdf: .*known: \.jsonl"):
        shards("data", [tmp_path / "b.pdf"])
    with pytest.raises(UserError, match="twice"):
        shards("data", [path, tmp_path / "x" / ".." / "a.jsonl"][:1] * 2)
    with pytest.raises(UserError, match=r"source '\.\./up'"):
        shards("../up", [path])


def test_a_folder_stands_for_its_files_and_names_below_it_differ(tmp_path: Path) -> None:
    for part in ("a/x.jsonl", "b/x.jsonl", "b/c/y.txt"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text(json.dumps({"text": "t"}))
    assert [shard.name for shard in shards("data", [tmp_path])] == [
        "a/x.jsonl", "b/c/y.txt", "b/x.jsonl"
    ]  # fmt: skip
