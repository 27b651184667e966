"""Shards of training data: documents out, and kept rows back in as they were.

    shard = Shard(source="web", path=Path("data/a.jsonl.gz"), name="a.jsonl.gz")
    for row in read(shard):      # Document, or Malformed
        ...
    write_kept(shard, Path("out/a.jsonl.gz"), drop={3, 17})

JSON lines (.jsonl .ndjson .json), plain or compressed (.gz .zst .bz2 .xz); Parquet; Arrow and
the folders that Hugging Face's datasets save (decon/columnar.py); plain text (.txt, plain or
compressed), one document per file. A JSON line is known by its bytes: what
is kept is written as it stood, unknown fields, order and spacing included. Blank lines are no
documents and stay where they are; so is a first line of only a byte order mark. A file without
a row is a shard of no documents.

A document's text is every known field that its row has, joined by a blank line; or the fields
that were asked for. Of a message every string counts but its role: thinking and tool calls too,
after all contents. So do all strings, however deep, in the `doc` that a prompt for reinforcement
learning carries for its verifier (tests, instructions, a worked answer).
"""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from decon import columnar
from decon.records import Document, Malformed
from evalsuite.errors import UserError
from evalsuite.files import COMPRESSIONS, damage_errors, decompressed

KNOWN_FIELDS = (
    "text", "messages", "conversations", "prompt", "completion", "instruction", "input", "output",
    "response", "question", "answer", "chosen", "rejected", "doc",
)  # fmt: skip
"""Read from each row, in this order, when no field is named."""

READING = 2
"""Version of how documents are read from rows; a certificate's id follows it."""

Moved = Callable[[int], None]
"""moved(position): how many bytes of the file have been read."""


def _stay(position: int) -> None:
    """The Moved that tells nobody."""


_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
    ".arrow": "arrow", ".txt": "text",
}  # fmt: skip
_NEVER_COMPRESSED = (".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a source."""

    source: str
    path: Path
    name: str
    """Its path below the folder that all files of the source share: no two are alike."""
    fields: tuple[str, ...] = ()
    """The row fields to read; none: KNOWN_FIELDS."""

    @property
    def compression(self) -> str:
        """'.gz', '.zst', '.bz2', '.xz' or ''."""
        return self.path.suffix if self.path.suffix in COMPRESSIONS else ""

    @property
    def kind(self) -> str:
        """jsonl, parquet, arrow or text."""
        bare = self.path.with_suffix("") if self.compression else self.path
        return _KINDS[bare.suffix]


def shards(source: str, paths: Sequence[Path], fields: Sequence[str] = ()) -> list[Shard]:
    """The files of a source, in the order given; a folder stands for all files under it.

    Links to folders are followed. Hidden files and folders (their names begin with a dot) are
    left out, unless named themselves. Raises UserError for a name that cannot be a folder, for a
    missing, damaged or unknown file, for a dead link, for a file given twice, and for a source
    of which no file has a row.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", source):
        raise UserError(
            f"source {source!r}: its cleaned files go into a folder of that name, so use letters, "
            "digits, '.', '_' and '-' only"
        )
    given = [(file, path) for path in paths for file in _files(path)]
    files = [file for file, _ in given]
    if not files:
        raise UserError(f"source {source!r} names no file that can hold a document")
    whole = [os.path.abspath(file) for file in files]
    times = Counter(whole)
    for file, place in zip(files, whole, strict=True):
        if times[place] > 1:
            raise UserError(f"source {source!r} names {file} twice; name it once")
    shared = os.path.commonpath([_home(*pair) for pair in given])
    found = []
    for file, place in zip(files, whole, strict=True):
        bare = file.with_suffix("") if file.suffix in COMPRESSIONS else file
        if bare.suffix not in _KINDS or (bare.suffix in _NEVER_COMPRESSED and bare != file):
            raise UserError(
                f"{file}: its ending names no known format; known: {', '.join(_KINDS)} "
                f"(all but {' and '.join(_NEVER_COMPRESSED)} also with {' '.join(COMPRESSIONS)}); "
                "rename it, or name the files you mean one by one"
            )
        name = os.path.relpath(place, shared)
        shard = Shard(source=source, path=file, name=name, fields=tuple(fields))
        if file.stat().st_size == 0 and (shard.kind != "jsonl" or shard.compression):
            raise UserError(f"{file}: the file is empty; leave it out, or make it again")
        if bare.suffix == ".json":
            _refuse_array(file)
        found.append(shard)
    for folder in dict.fromkeys(file.parent for file in files if file.suffix == ".arrow"):
        columnar.check_beside(folder)
    if all(map(_is_empty, found)):
        many = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        raise UserError(
            f"source {source!r}: its files ({files[0]}{many}) hold no document; leave the source "
            "out, or make its files again"
        )
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    inside = sorted(_under(path, frozenset()))
    return [p for p in inside if not columnar.is_beside(p)]


def _under(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """All files under a folder; `above` are the real folders that hold it: there a loop ends."""
    real = os.path.realpath(folder)
    if real in above:
        return  # its files are found already, on the way here
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _under(path, above | {real})
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise UserError(
                f"{path}: a link to {os.readlink(path)}, which is no file or folder; mend or "
                "remove the link"
            )


def _is_empty(shard: Shard) -> bool:
    """Whether a shard has no row; of a damaged one, reading the rows tells where."""
    try:
        match shard.kind:
            case "jsonl":
                return all(is_blank(number, raw) for number, raw in raw_lines(shard.path))
            case "text":
                return False
        return columnar.is_empty(shard.path)
    except UserError:
        return False


def _home(file: Path, given: Path) -> str:
    """The folder whose path a file's name is told below, unless its source has other files.

    The files of a saved DatasetDict keep the folder of their split, be it the only one.
    """
    parent = Path(os.path.abspath(file)).parent
    inside = os.path.abspath(given) in map(str, (parent.parent, *parent.parent.parents))
    if inside and columnar.data_files(parent) is not None and columnar.is_dict(parent.parent):
        return str(parent.parent)
    return str(parent)


def _refuse_array(file: Path) -> None:
    with file.open("rb") as raw:
        try:
            start = decompressed(file, raw).read(4096)
        except damage_errors(file):
            return  # reading the rows tells where
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise UserError(
            f"{file}: holds one JSON array, but rows are read one object per line; "
            f"write its elements as lines, for example with: jq -c '.[]' {file}"
        )


def read(shard: Shard, moved: Moved = _stay) -> Iterator[tuple[Document | Malformed, str]]:
    """Each document or malformed line of a shard, with its whole row as JSON text.

    A file without a row yields nothing. Raises UserError for a file that is cut short.
    """
    match shard.kind:
        case "jsonl":
            return _read_jsonl(shard, moved)
        case "text":
            return _read_text(shard, moved)
    return _read_columns(shard, moved)


def _malformed(shard: Shard, line: int, problem: str) -> tuple[Malformed, str]:
    found = Malformed(source=shard.source, file=str(shard.path), line=line, problem=problem)
    return found, "null"


def _read_jsonl(shard: Shard, moved: Moved) -> Iterator[tuple[Document | Malformed, str]]:
    for number, raw in raw_lines(shard.path, moved):
        if not is_blank(number, raw):
            yield parse_line(shard, number, raw)


def is_blank(number: int, raw: bytes) -> bool:
    """Whether a line holds nothing but blanks and, on the first, a byte order mark."""
    return not (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip()


def parse_line(shard: Shard, number: int, raw: bytes) -> tuple[Document | Malformed, str]:
    """The document of one line that is not blank, with its row as JSON text."""
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        row = json.loads(line)
    except RecursionError:
        return _malformed(shard, number, "lists or objects nested too deeply")
    except ValueError as error:
        return _malformed(shard, number, f"not valid JSON ({error})")
    if not isinstance(row, dict):
        kind = type(row).__name__
        return _malformed(shard, number, f"a JSON {kind} where an object is needed")
    return _document(shard, number, row), line.strip()


def _read_columns(shard: Shard, moved: Moved) -> Iterator[tuple[Document | Malformed, str]]:
    number = 0
    for rows in columnar.batches(shard.path, moved):
        for row in rows:
            number += 1
            whole = json.dumps(row, ensure_ascii=False, default=str)
            yield _document(shard, number, row), whole


def _read_text(shard: Shard, moved: Moved) -> Iterator[tuple[Document | Malformed, str]]:
    raw = b"".join(line for _, line in raw_lines(shard.path, moved))
    if not raw:
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield _malformed(shard, raw[: error.start].count(b"\n") + 1, f"not UTF-8 ({error})")
        return
    yield (
        Document(line=1, id=shard.name, text=text),
        json.dumps({"text": text}, ensure_ascii=False),
    )


def _document(shard: Shard, number: int, row: dict[str, Any]) -> Document | Malformed:
    wanted = shard.fields or KNOWN_FIELDS
    present = [field for field in wanted if field in row]
    if not present:
        asked = f"none of the fields {', '.join(wanted)}" if shard.fields else "no known text field"
        have = ", ".join(row) or "none"
        problem = f"the row has {asked} (it has: {have}; name the right one with --field NAME)"
        return _malformed(shard, number, problem)[0]
    texts: list[str] = []
    beside: list[str] = []
    for field in present:
        value = row[field]
        if value is None:
            continue
        if isinstance(value, columnar.NotUtf8):
            return _malformed(shard, number, f"field {field!r} holds text that is not UTF-8")[0]
        if field == "doc" and not shard.fields and not isinstance(value, str):
            beside.extend(_strings(value))
        elif not _collect(value, texts, beside):
            return _malformed(
                shard,
                number,
                f"field {field!r} holds a {type(value).__name__}, not text or messages",
            )[0]
    texts += beside
    if not texts:
        return _malformed(shard, number, f"field {present[0]!r} holds nothing")[0]
    name = row.get("id")
    known = isinstance(name, (str, int)) and not isinstance(name, bool)
    return Document(line=number, id=str(name) if known else str(number), text="\n\n".join(texts))


def _collect(value: Any, texts: list[str], beside: list[str]) -> bool:
    """Add the texts in a field's value to `texts`; False if it is neither text nor messages.

    What a message says beside its content (its thinking, its tool calls) goes to `beside`, so
    that a text which runs over several messages stays in one piece.
    """
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                texts.append(text)
            case dict() as message:
                known, inner, others = _message(message)
                if not known:
                    return False
                for part in others:
                    beside.extend(_strings(part))
                if inner is not None:
                    left.append(inner)
            case list() as parts:
                left.extend(reversed(parts))
            case _:
                return False
    return True


def _message(value: dict[str, Any]) -> tuple[bool, Any, list[Any]]:
    """(whether it is a message or a part of one, its content, what stands beside that)."""
    if "from" in value and "value" in value and "content" not in value:  # as in ShareGPT
        value = {name: part for name, part in value.items() if name != "from"}
        value = {"role": None, "content": value.pop("value"), **value}
    # A message, or a part of one: {"type": "text", "text": ...}.
    said = "content" if "content" in value else "text"
    inner = value.get(said)
    known = inner is not None or "role" in value or "type" in value
    return known, inner, [v for name, v in value.items() if name not in (said, "role", "type")]


def _strings(value: Any) -> Iterator[str]:
    """Every string with a word in it, however deep, in the order of the row."""
    left = [value]
    while left:
        match left.pop():
            case str() as text if text.strip():
                yield text
            case dict() as parts:
                left.extend(reversed(parts.values()))
            case list() | tuple() as parts:
                left.extend(reversed(parts))


def raw_lines(path: Path, moved: Moved = _stay) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes with their line end) of each line of a plain or compressed file."""
    number = 0
    damages = damage_errors(path)
    with path.open("rb") as file:
        try:
            for number, raw in enumerate(decompressed(path, file), 1):
                yield number, raw
                if number % 256 == 0:
                    moved(file.tell())
        except damages as error:
            raise UserError(
                f"{path}:{number + 1}: the file is damaged or cut short ({_line(error)}); "
                "make it again"
            ) from None


def write_beside(found: Sequence[Shard], folder: Path) -> list[Path]:
    """Write what saved data sets need beside their cleaned shards; returns the files' paths.

    Call it once all shards of a source stand under `folder` by their names. Nothing is written
    for other shards, nor for a data set of which only some files were given.
    """
    return columnar.write_beside(
        {Path(os.path.abspath(shard.path)): shard.name for shard in found}, folder
    )


def write_kept(shard: Shard, out: Path, drop: Collection[int]) -> bool:
    """Write a shard without the lines in `drop` to `out`, in its own format and compression.

    A shard that loses nothing is copied byte for byte. A text file is one document: dropped,
    it is not written. Returns whether `out` was written.
    """
    if shard.kind == "text" and drop:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    if not drop:
        shutil.copyfile(shard.path, out)
    elif shard.kind in ("parquet", "arrow"):
        columnar.write_rows(shard.path, out, drop)
    else:
        with _create(out) as handle:
            for number, raw in raw_lines(shard.path):
                if number not in drop:
                    handle.write(raw)
    return True


@contextmanager
def _create(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, compressed by its ending; the same rows give the same bytes."""
    match path.suffix:
        case ".gz":
            import gzip

            with (
                path.open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as gz,
            ):
                yield gz  # type: ignore[misc]
        case ".bz2":
            import bz2

            with bz2.open(path, "wb") as handle:
                yield handle
        case ".xz":
            import lzma

            with lzma.open(path, "wb") as handle:
                yield handle
        case ".zst":
            import zstandard

            with zstandard.open(path, "wb") as handle:
                yield handle
        case _:
            with path.open("wb") as handle:
                yield handle


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
