"""A recipe's sources become folders of canonical shards, named by their content.

    facts: {microworld: facts, documents: 20000}   ->   runs/sources/<id>/part-00000.jsonl.zst

Each row is a text, a conversation, a pair or a prompt (trainloop/shapes.py), all rows of a source
the same. The id of the folder hashes the source's definition and the bytes it was made from, so
a changed file is another source and an unchanged one is never read twice. Long texts are cut at
paragraph ends, so that a hit costs a passage and not a whole book; nothing is dropped by the
cut. Pairs that cannot teach are left out, and counted by reason in the folder's source.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
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
from trainloop import shapes
from trainloop.records import Plant, Source

SHARD_DOCUMENTS = 50_000
FORMAT = 3
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
    left_out: dict[str, int]
    """Why rows are no documents -> how many."""


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
        left_out=about["left_out"],
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

    assert source.hub is not None, "on-policy pairs are written during the run"
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
    left_out: Counter[str] = Counter()
    rows = _lines(name, source, base, mirror, left_out)
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
        reasons = "; ".join(f"{number:,} rows: {why}" for why, number in left_out.items())
        raise UserError(f"source {name!r} holds no document" + (reasons and f" ({reasons})"))
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
            "left_out": dict(sorted(left_out.items())),
        },
    )


def _lines(
    name: str, source: Source, base: Path, mirror: Path | None, left_out: Counter[str]
) -> Iterator[bytes]:
    """The canonical rows as lines of JSON; counts in `left_out` what cannot be used."""
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
    kind: shapes.Kind | None = "text" if source.plant else None
    for number, (place, row) in enumerate(islice(rows, source.documents), 1):
        try:
            for document in shapes.documents(name, source, f"{name}-{number}", place, row):
                found = shapes.kind_of(document)
                kind = kind or found
                if found != kind:
                    raise UserError(
                        f"{place}: source {name!r}: the row is a {found}, but a {kind} stands "
                        "before it; make two sources of them"
                    )
                yield _line(place, document)
        except shapes.Unusable as why:
            left_out[str(why)] += 1


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
        text = shapes.fill(plant.template, row, f"plant {plant.hub}")
        yield from shapes.cut(f"planted-{number}", text)


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
