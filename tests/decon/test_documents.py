"""Shards in: formats, fields, and what is no document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decon_parts import ITEM, WRITERS, index_of, jsonl, question
from hypothesis import given, settings
from hypothesis import strategies as st

from decon.documents import read, shards, write_kept
from decon.records import Document, Malformed
from decon.scan import scan
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
        ({"doc": {"tests": ["b", {"c": "d", "n": 1}], "right": True}, "text": "a"}, "a\n\nb\n\nd"),
        ({"doc": 17, "text": "a"}, "a"),
        ({"doc": "b", "text": "a"}, "a\n\nb"),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": "c",
                "answer": ["d", "e"],
                "verifier": "match",
                "doc": {"worked": "f"},
            },
            "a\n\nd\n\ne\n\nb\n\nc\n\nf",
        ),
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
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b", "weight": 0, "thought": "c"},
                    {"from": "gpt", "value": None},
                ]
            },
            "a\n\nb\n\nc",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            "a\n\nb",
        ),
        (
            {
                "prompt": "a",
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            },
            "a\n\na\n\nb\n\nc",
        ),
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
    [_, lost] = documents(path)
    assert isinstance(lost, Malformed) and lost.line == 2
    assert "body, url" in lost.problem and "--field" in lost.problem
    [wrong, _] = documents(path, "boddy")
    assert isinstance(wrong, Malformed)
    assert "none of the fields boddy (it has: text;" in wrong.problem


def test_a_file_of_which_no_row_is_a_document_is_refused_even_when_rows_may_be_skipped(
    tmp_path: Path,
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"body": "x"}, {"body": "y"}])
    index = index_of([question(0, ITEM)])
    with pytest.raises(UserError, match=r"a\.jsonl: none of its 2 rows is a document.*line 1"):
        scan({"web": [path]}, index, malformed="skip")


def test_a_name_that_is_no_unicode_is_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "bad\udcff.jsonl", ["x"])
    index = index_of([question(0, ITEM)])
    with pytest.raises(UserError, match=r"bad.udcff\.jsonl'?: this name is not valid Unicode"):
        scan({"web": [path]}, index)


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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt", "a.parquet", "a.arrow"])
def test_an_empty_file_that_cannot_be_whole_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name}: the file is empty"):
        shards("data", [tmp_path / name])


def without_rows(path: Path) -> Path:
    """A file that lost all its rows, as `write_kept` leaves it."""
    rows = [{"z": 1, "text": "t", "messages": [], "kind": "a"}]
    [shard] = shards("data", [write(path.parent / "whole" / path.name, rows)])
    assert write_kept(shard, path, {1})
    return path


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow", "a.jsonl",
                                  "a.jsonl.gz", "a.jsonl.zst"])  # fmt: skip
def test_a_file_without_a_row_is_a_shard_of_no_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    empty = without_rows(tmp_path / name)
    full = jsonl(tmp_path / "full.jsonl", ["a"])
    found = shards("data", [empty, full])
    assert [len(list(read(shard))) for shard in found] == [0, 1]
    with pytest.raises(UserError, match=rf"source 'data': its files .*{name}\) hold no document"):
        shards("data", [empty])


def test_a_source_of_which_all_files_are_empty_is_an_error(tmp_path: Path) -> None:
    for i, raw in enumerate((b"", b"\n \n", b"\xef\xbb\xbf \r\n\n")):
        (tmp_path / f"{i}.jsonl").write_bytes(raw)
    with pytest.raises(UserError, match=r"'web': its files \(.*0\.jsonl and 2 more\) hold no doc"):
        shards("web", [tmp_path])


def test_a_byte_order_mark_alone_on_the_first_line_is_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf \r\n{"text": "a"}\n\xef\xbb\xbf\n')
    first, third = documents(path)
    assert first == Document(line=2, id="2", text="a")
    assert isinstance(third, Malformed) and third.line == 3


def test_links_to_folders_are_followed_and_loops_of_them_end(tmp_path: Path) -> None:
    for part in ("data/a/x.jsonl", "elsewhere/y.jsonl", "data/.hidden/z.jsonl", "data/.z.jsonl"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text('{"text": "t"}')
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "a/up").symlink_to(data)
    (tmp_path / "elsewhere/round").symlink_to(data)
    (data / ".dead").symlink_to(tmp_path / "nothing")
    assert [shard.name for shard in shards("data", [data])] == ["a/x.jsonl", "link/y.jsonl"]
    (data / "a/dead.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"a/dead\.jsonl: a link to .*nothing, which is no file"):
        shards("data", [data])


def nested(depth: int) -> str:
    return '{"text": ' + "[" * depth + '"a"' + "]" * depth + "}"


def test_lists_however_deep_are_text_or_a_malformed_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(nested(500) + "\n" + nested(100_000) + '\n{"text": "b"}\n')
    deep, deeper, plain = documents(path)
    assert isinstance(deep, Document) and deep.text == "a"
    assert isinstance(deeper, Malformed) and "nested too deeply" in deeper.problem
    assert isinstance(plain, Document)


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


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    strange = "\u2028 \u2029 \x85 \x0b \x1c \r end"
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"{strange} {i}"}, ensure_ascii=False) for i in range(3)]
    path.write_bytes("\r\n".join(lines).encode())
    found = documents(path)
    assert found == [Document(line=i + 1, id=str(i + 1), text=f"{strange} {i}") for i in range(3)]
    [shard] = shards("data", [path])
    assert write_kept(shard, tmp_path / "out.jsonl", {2})
    assert (tmp_path / "out.jsonl").read_bytes() == (lines[0] + "\r\n" + lines[2]).encode()


def test_a_json_file_of_one_array_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(' \n[{"text": "one"}, {"text": "two"}]')
    with pytest.raises(UserError, match=r"a\.json: holds one JSON array.*jq -c"):
        documents(path)
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert len(documents(path)) == 2


def test_two_files_of_one_name_never_meet(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "in/x/part.jsonl", ["one", "keep"])
    two = jsonl(tmp_path / "in/y/part.jsonl", ["two", "keep too"])
    for first, second in [(one, two), (two, one)]:
        found = shards("data", [first, second])
        out = tmp_path / f"out{first.parent.name}"
        for shard in found:
            write_kept(shard, out / shard.name, {1})
        assert (out / "x/part.jsonl").read_text() == '{"text": "keep"}\n'
        assert (out / "y/part.jsonl").read_text() == '{"text": "keep too"}\n'


def table(rows: list[dict[str, Any]]) -> pa.Table:
    message = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    return pa.table(
        {
            "z": pa.array([row["z"] for row in rows], pa.int64()),
            "text": pa.array([row["text"] for row in rows], pa.large_string()),
            "messages": pa.array([row["messages"] for row in rows], pa.list_(message)),
            "kind": pa.array([row["kind"] for row in rows], pa.string()).dictionary_encode(),
        }
    ).replace_schema_metadata({"mine": "kept"})


def write(path: Path, rows: list[dict[str, Any]], *, size: int = 3) -> Path:
    """Rows in the format that the name asks for, `size` to a row group or batch."""
    if path.suffix == ".parquet":
        pq.write_table(table(rows), path, row_group_size=size, compression="zstd")
    elif path.suffix == ".arrow":
        make = pa.ipc.new_file if "file" in path.name else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, make(sink, table(rows).schema) as writer:
            writer.write_table(table(rows), max_chunksize=size)
    else:
        jsonl(path, rows)
    return path


FORMATS = ("a.parquet", "stream.arrow", "file.arrow", *(f"a.jsonl{e}" for e in sorted(WRITERS)))

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "z": st.integers(-(2**63), 2**63 - 1),
            "text": TEXTS,
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}), max_size=2
            ),
            "kind": st.sampled_from(["a", "b", None]),
        }
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=ROWS, data=st.data())
def test_what_is_kept_is_every_row_not_dropped_with_all_it_had(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[dict[str, Any]], data: Any
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    [shard] = shards("data", [write(folder / name, rows)])
    before = list(read(shard))
    assert [document.line for document, _ in before] == list(range(1, len(rows) + 1))
    assert [json.loads(whole) for _, whole in before] == rows
    drop = data.draw(st.sets(st.integers(1, len(rows)), max_size=len(rows) - 1))
    out = folder / "out" / name
    assert write_kept(shard, out, drop)
    [kept] = shards("data", [out])
    after = list(read(kept))
    assert [json.loads(whole) for _, whole in after] == [
        row for i, row in enumerate(rows, 1) if i not in drop
    ]
    # read = kept + removed
    assert len(before) == len(after) + len(drop)
    if name.endswith(".parquet"):
        assert pq.read_schema(out).equals(pq.read_schema(shard.path), check_metadata=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_that_loses_nothing_is_copied_and_one_that_loses_all_keeps_its_columns(
    tmp_path: Path, name: str
) -> None:
    rows = [{"z": i, "text": "t", "messages": [], "kind": "a"} for i in range(4)]
    [shard] = shards("data", [write(tmp_path / name, rows)])
    out = tmp_path / "out" / name
    assert write_kept(shard, out, set())
    assert out.read_bytes() == shard.path.read_bytes()
    assert write_kept(shard, out, {1, 2, 3, 4})
    if out.suffix == ".parquet":
        assert pq.read_table(out).schema.equals(pq.read_schema(shard.path), check_metadata=True)
        assert pq.read_table(out).num_rows == 0
    elif out.suffix == ".arrow":
        opened = (pa.ipc.open_file if name == "file.arrow" else pa.ipc.open_stream)(out)
        assert opened.read_all().num_rows == 0 and opened.schema.metadata == {b"mine": b"kept"}


def test_parquet_keeps_row_groups_compression_and_metadata(tmp_path: Path) -> None:
    rows = [{"z": i, "text": "t" * 50, "messages": [], "kind": "a"} for i in range(10)]
    path = tmp_path / "a.parquet"
    codecs = {"z": "none", "text": "gzip", "kind": "snappy", "messages.list.element.role": "zstd",
              "messages.list.element.content": "lz4"}  # fmt: skip
    pq.write_table(table(rows), path, row_group_size=4, compression=codecs)
    [shard] = shards("data", [path])
    out = tmp_path / "out.parquet"
    write_kept(shard, out, {2, 9, 10})
    old, new = pq.ParquetFile(path).metadata, pq.ParquetFile(out).metadata
    assert [new.row_group(i).num_rows for i in range(new.num_row_groups)] == [3, 4]
    assert [new.row_group(0).column(i).compression for i in range(5)] == [
        old.row_group(0).column(i).compression for i in range(5)
    ]
    assert new.metadata[b"mine"] == old.metadata[b"mine"] == b"kept"
    assert new.format_version == old.format_version


def test_a_large_parquet_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    from decon import columnar

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), path)
    moves: list[int] = []
    sizes = [len(rows) for rows in columnar.batches(path, moves.append)]
    assert max(sizes) == columnar.BATCH and sum(sizes) == 5000
    assert moves == sorted(moves) and moves[-1] == path.stat().st_size


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow"])
def test_an_arrow_file_cut_short_is_an_error(tmp_path: Path, name: str) -> None:
    rows = [{"z": i, "text": "t", "messages": [], "kind": "a"} for i in range(9)]
    path = write(tmp_path / name, rows)
    whole = path.read_bytes()
    for size in (len(whole) - 8, len(whole) // 2, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"arrow: row \d+: not a whole Arrow file"):
            documents(path)


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow"])
def test_a_column_without_text_is_told_by_its_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    odd = pa.table({"text": pa.array([None, "a"]), "n": [1, 2]})
    if name == "a.parquet":
        pq.write_table(odd, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, odd.schema) as writer:
            writer.write_table(odd)
    empty, full = documents(path)
    assert isinstance(empty, Malformed) and empty.line == 1
    assert isinstance(full, Document) and full.line == 2
    for row in documents(path, "body"):
        assert isinstance(row, Malformed)
        assert "none of the fields body (it has: text, n;" in row.problem


def save(path: Path, columns: pa.Table) -> Path:
    """A table as a .parquet or .arrow file."""
    if path.suffix == ".parquet":
        pq.write_table(columns, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, columns.schema) as writer:
            writer.write_table(columns)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_two_columns_of_one_name_are_an_error_that_names_them(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, pa.table([["a"], ["b"]], names=["text", "text"]))
    with pytest.raises(UserError, match=rf"{name}: has two columns named 'text'"):
        documents(path)
    twice = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["b", "b"])
    path = save(tmp_path / f"2{name}", pa.table({"m": pa.array([[{}]], pa.list_(twice.type))}))
    with pytest.raises(UserError, match=rf"{name}: has two columns named 'm\.(element|item)\.b'"):
        documents(path)


def strings(*values: bytes) -> pa.Array:
    """A string column of any bytes."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_text_that_is_not_utf8_is_a_malformed_row(tmp_path: Path, name: str) -> None:
    texts = strings(b"fine", b"caf\xe9", b"fine too")
    said = pa.StructArray.from_arrays([texts], names=["content"])
    messages = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), said)
    path = save(tmp_path / name, pa.table({"text": texts, "messages": messages, "body": ["a"] * 3}))
    for field in ("text", "messages"):
        one, two, three = documents(path, field)
        assert isinstance(one, Document) and one.text == "fine"
        assert isinstance(two, Malformed) and two.line == 2 and two.file == str(path)
        assert two.problem == f"field {field!r} holds text that is not UTF-8"
        assert isinstance(three, Document) and three.text == "fine too"
    [shard] = shards("data", [path], ["body"])
    (_, (body, whole), _) = read(shard)
    assert isinstance(body, Document) and json.loads(whole)["text"] == "caf\ufffd"


TIMES = [
    pa.array([0, 2**62], pa.timestamp("us")),
    pa.array([0, 2**62], pa.timestamp("s", tz="No/Where")),
    pa.array([0, 2**30], pa.date32()),
    pa.array([0, 2**62], pa.duration("s")),
    pa.array([{"at": [0]}, {"at": [2**62]}], pa.struct([("at", pa.list_(pa.timestamp("us")))])),
]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: str(times.type))
def test_a_time_beyond_pythons_does_not_stop_the_reading(tmp_path: Path, times: pa.Array) -> None:
    path = save(tmp_path / "a.arrow", pa.table({"text": ["a", "b"], "when": times}))
    [shard] = shards("data", [path])
    (_, _), (document, whole) = read(shard)
    assert isinstance(document, Document) and document.text == "b"
    assert str(2**30 if times.type == pa.date32() else 2**62) in whole
