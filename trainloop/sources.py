"""A recipe's sources become folders of canonical shards, named by their content.

    facts: {microworld: facts, documents: 20000}   ->   runs/sources/<id>/part-00000.jsonl.zst

Each row is {"id", "text"} or {"id", "messages"}. The id of the folder hashes the source's
definition and the bytes it was made from, so a changed file is another source and an unchanged
one is never read twice. Texts of more than `LONGEST` characters are cut at paragraph ends, so
that a hit costs a passage and not a whole book; nothing is dropped by the cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, did_you_mean
from evalsuite.files import (
    COMPRESSIONS,
    canonical_json,
    content_id,
    damage_errors,
    open_text,
    publish,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
)
from evalsuite.progress import Progress, silent
from trainloop.records import Plant, Source

LONGEST = 8_000
"""Characters after which a text is cut at the next paragraph end."""
SHARD_DOCUMENTS = 50_000
FORMAT = 2
"""Raised when the same definition would give other shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """A source made ready: its folder, its shard files, and what was planted in it."""

    name: str
    id: str
    folder: Path
    files: tuple[Path, ...]
    documents: int
    planted: int


def materialise(
    name: str,
    source: Source,
    *,
    root: Path,
    base: Path,
    mirror: Path | None,
    progress: Progress = silent,
) -> Shards:
    """Write `source` as shards under `root`/sources once; later calls find them.

    `base` is the recipe's folder, from which relative paths start. The planted ground truth,
    if any, stands in the folder's planted.jsonl. Raises UserError for what cannot be read.
    """
    identity = {"format": FORMAT, "source": asdict(source), "origin": _origin(source, base, mirror)}
    folder = root / "sources" / content_id(identity)
    if not folder.is_dir():
        with publish(folder) as work:
            _write_shards(name, source, work, base, mirror, progress)
    about = read_json(folder / "source.json")
    return Shards(
        name=name,
        id=folder.name,
        folder=folder,
        files=tuple(folder / file for file in about["files"]),
        documents=about["documents"],
        planted=about["planted"],
    )


def _origin(source: Source, base: Path, mirror: Path | None) -> Any:
    """What the source is made from: hashes of its files, its rows, or the generator's code."""
    if source.microworld:
        from evalsuite import microworld

        code = sorted(Path(microworld.__file__).parent.glob("*.py"))
        return [sha256_file(path) for path in code]
    if source.files:
        return [sha256_file(path) for path in _paths(source, base)]
    from evalsuite import hubdata

    assert source.hub is not None
    sets = [(source.hub, source.config, source.split)]
    if plant := source.plant:
        sets.append((plant.hub, plant.config, plant.split))
    found = [hubdata.rows(*each, mirror=mirror) for each in sets]
    try:
        return content_id(found)
    except (TypeError, ValueError):
        for each, rows in zip(sets, found, strict=True):
            for number, row in enumerate(rows, 1):
                _line(f"{_hub_name(*each)}:{number}", row)
        raise


def _paths(source: Source, base: Path) -> list[Path]:
    paths = [base / file for file in source.files]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; 'files' are paths from the recipe's folder")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; remove it from the source's files")
    return paths


def _write_shards(
    name: str, source: Source, work: Path, base: Path, mirror: Path | None, progress: Progress
) -> None:
    import zstandard

    label = f"source {name}"
    rows = _lines(name, source, base, mirror)
    files: list[str] = []
    count = 0
    while batch := list(islice(rows, SHARD_DOCUMENTS)):
        file = f"part-{len(files):05d}.jsonl.zst"
        with (work / file).open("wb") as raw, zstandard.ZstdCompressor(3).stream_writer(raw) as out:
            for line in batch:
                out.write(line)
        files.append(file)
        count += len(batch)
        progress(label, count, max(count + 1, source.documents or 0))
    if not count:
        raise UserError(f"source {name!r} holds no document")
    progress(label, count, count)
    truth = _planted(source, mirror)
    with (work / "planted.jsonl").open("w", encoding="utf-8") as out_text:
        out_text.writelines(canonical_json(row) + "\n" for row in truth)
    write_json(
        work / "source.json",
        {
            "name": name,
            "source": asdict(source),
            "files": files,
            "documents": count,
            "planted": len(truth),
        },
    )


def _lines(name: str, source: Source, base: Path, mirror: Path | None) -> Iterator[bytes]:
    """The canonical rows as lines of JSON."""
    if source.microworld:
        from evalsuite import microworld

        if source.microworld not in microworld.KINDS:
            raise UserError(
                f"source {name!r}: the micro-world has no documents of kind "
                f"{source.microworld!r}" + did_you_mean(source.microworld, microworld.KINDS)
            )
        assert source.documents is not None
        made = microworld.documents(
            source.microworld,
            count=source.documents,
            seed=source.seed,
            leaks=_leaks(source),
        )
        yield from (_line(f"source {name!r}", row) for row in made)
        return
    for row in _plant_rows(source.plant, mirror):
        yield _line(f"source {name!r}: {row['id']}", row)
    rows = _file_rows(source, base) if source.files else _hub_rows(source, mirror)
    for number, (place, row) in enumerate(islice(rows, source.documents), 1):
        for document in _shape(name, source, f"{name}-{number}", place, row):
            yield _line(place, document)


def _line(place: str, row: dict[str, Any]) -> bytes:
    """`row` as a line of JSON in UTF-8; UserError naming `place` for what neither can hold."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        reason = f"holds {code}, half of a character (a lone surrogate), which no UTF-8 can hold"
    except (TypeError, ValueError) as error:
        reason = f"holds a value that JSON cannot hold ({error})"
    raise UserError(f"{place}: the row {reason}; mend or remove the row")


def _leaks(source: Source) -> Any:
    from evalsuite import microworld

    leaks = source.leaks
    return leaks and microworld.Leaks(rate=leaks.rate, forms=leaks.forms, suite=leaks.suite)


def _plant_rows(plant: Plant | None, mirror: Path | None) -> Iterator[dict[str, Any]]:
    if plant is None:
        return
    from evalsuite import hubdata

    rows = hubdata.rows(plant.hub, plant.config, plant.split, mirror=mirror)
    for number, row in enumerate(rows[: plant.first]):
        yield from _cut(f"planted-{number}", _fill(plant.template, row, f"plant {plant.hub}"))


def _planted(source: Source, mirror: Path | None) -> list[dict[str, Any]]:
    """The ground truth of what was planted on purpose."""
    if source.leaks:
        from evalsuite import microworld

        assert source.microworld is not None and source.documents is not None
        return microworld.planted(
            source.microworld, count=source.documents, seed=source.seed, leaks=_leaks(source)
        )
    if source.plant:
        return [
            {"document_id": row["id"], "hub": source.plant.hub, "form": "verbatim"}
            for row in _plant_rows(source.plant, mirror)
        ]
    return []


def _file_rows(source: Source, base: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _paths(source, base):
        kind = [end for end in path.suffixes if end not in COMPRESSIONS]
        match kind[-1] if kind else "":
            case ".txt":
                yield str(path), {"text": _text(path)}
            case ".parquet":
                for number, row in enumerate(_parquet_rows(path), 1):
                    yield f"{path}:{number}", row
            case ".jsonl" | ".json" | ".ndjson":
                for number, row in read_jsonl(path):
                    yield f"{path}:{number}", row
            case other:
                raise UserError(
                    f"{path}: the ending {other!r} is not known; use .jsonl (.gz .zst .bz2 .xz), "
                    ".parquet or .txt"
                )


def _text(path: Path) -> str:
    with open_text(path) as handle:
        try:
            return handle.read()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{path}: not UTF-8 text (byte {byte:#04x} at {error.start:,}); save it as UTF-8"
            ) from None
        except damage_errors(path) as error:
            raise UserError(
                f"{path}: the file is damaged or cut short ({error}); make it again"
            ) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: cannot be read as Parquet ({reason}); make the file again"
        ) from None


def _hub_rows(source: Source, mirror: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    from evalsuite import hubdata

    assert source.hub is not None
    rows = hubdata.rows(source.hub, source.config, source.split, mirror=mirror)
    name = _hub_name(source.hub, source.config, source.split)
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", row


def _hub_name(*parts: str | None) -> str:
    return ":".join(filter(None, parts))


def _shape(
    name: str, source: Source, key: str, place: str, row: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row as documents of the canonical shape; `key` is the id of one that brings none."""
    if source.prompt is not None and source.response is not None:
        turns = [("user", source.prompt), ("assistant", source.response)]
        messages = [{"role": r, "content": _fill(template, row, place)} for r, template in turns]
        yield {"id": key, "messages": messages}
    elif source.template is not None:
        yield from _cut(key, _fill(source.template, row, place))
    elif isinstance(row.get("messages"), list):
        if not row["messages"]:
            raise UserError(
                f"{place}: source {name!r}: 'messages' is empty; remove the row, or give it a turn"
            )
        for message in row["messages"]:
            _check_message(name, place, message)
        yield {"id": str(row.get("id", key)), "messages": row["messages"]}
    elif isinstance(row.get("text"), str):
        yield from _cut(str(row.get("id", key)), row["text"])
    else:
        raise UserError(
            f"{place}: source {name!r} needs a field 'text' or 'messages', but the row has "
            f"{', '.join(map(repr, row))}; name the fields with template, or prompt and response"
        )


def _check_message(name: str, place: str, message: Any) -> None:
    """UserError unless `message` is a role and a content, and no other key holds text.

    A chat template could render such a text, which decontamination does not read.
    """
    if not isinstance(message, dict) or not all(
        isinstance(message.get(part), str) for part in ("role", "content")
    ):
        raise UserError(
            f"{place}: source {name!r}: each of 'messages' needs a text 'role' and a text "
            f"'content', but one is {str(message)[:80]!r}"
        )
    for key, value in message.items():
        if key not in ("role", "content") and _holds_text(value):
            raise UserError(
                f"{place}: source {name!r}: a message has text in {key!r} "
                f"({str(value)[:40]!r}) beside role and content, where decontamination does not "
                "look; remove the field from the file, or make the turns with prompt and response"
            )


def _holds_text(value: Any) -> bool:
    """Whether a non-empty string stands in a JSON value, however deep."""
    match value:
        case str():
            return value != ""
        case dict():
            return any(map(_holds_text, value.values()))
        case list():
            return any(map(_holds_text, value))
    return False


def _fill(template: str, row: Mapping[str, Any], place: str) -> str:
    """`template` with each {field} replaced by the row's value."""

    def value(match: re.Match[str]) -> str:
        field = match.group(1)
        if field not in row:
            raise UserError(f"{place}: no field {field!r}{did_you_mean(field, row)}")
        return str(row[field])

    return re.sub(r"\{(\w+)\}", value, template)


def _cut(key: str, text: str) -> Iterator[dict[str, Any]]:
    """A text as pieces of about LONGEST characters that end at a blank line; blank texts vanish."""
    if len(text) <= LONGEST:
        if text.strip():
            yield {"id": key, "text": text}
        return
    piece: list[str] = []
    size = number = 0
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        if size + len(paragraph) > LONGEST and piece:
            yield {"id": f"{key}#{number}", "text": "\n".join(piece)}
            piece, size, number = [], 0, number + 1
        if paragraph.strip():
            piece.append(paragraph)
            size += len(paragraph)
    if piece:
        yield {"id": f"{key}#{number}", "text": "\n".join(piece)}
