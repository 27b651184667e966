"""A user's files become canonical shards, or one line that says which row is wrong and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalsuite.errors import UserError
from evalsuite.files import read_jsonl
from trainloop import sources
from trainloop.records import Source

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
