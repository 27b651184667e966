"""Files that are whole or absent, and the hashes that name them.

    with publish(Path("runs/scores/ab12")) as folder:      # a folder, renamed into place at the end
        ...
    with publish_file(Path("verdict.json")) as handle:      # a text file, likewise

Whatever stops the block (an exception, a kill, a full disk) leaves nothing under the
final name. Readers therefore need no locks: a name that exists is complete.
JSONL is read plain or compressed, by its ending: .gz .zst .bz2 .xz.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from evalsuite.errors import UserError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, real Unicode; NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def content_id(value: Any, length: int = 16) -> str:
    """Hex name of a JSON-able value: the first `length` digits of its SHA-256."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def publish(final: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` by one rename when the block ends well.

    If `final` already exists then, it wins and ours is dropped: names are content
    addresses, so both hold the same. Raises UserError on a full disk.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    work = _partial(final)
    try:
        work.mkdir()
        with full_disk_is_a_user_error(final):
            yield work
            for path in sorted(work.rglob("*")):
                if path.is_file():
                    _sync(path)
        try:
            os.rename(work, final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        _sync(final.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def publish_file(final: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 text file that replaces `final` by one rename when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    work = _partial(final)
    try:
        with full_disk_is_a_user_error(final), work.open("w", encoding="utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(work, final)
        _sync(final.parent)
    finally:
        work.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON with a newline at its end; NaN is refused."""
    with publish_file(path) as handle:
        json.dump(value, handle, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError names the file that is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from None


def _partial(final: Path) -> Path:
    """A name beside `final` that says which process of which machine is writing it."""
    writer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return final.parent / f".{final.name}.{writer}.partial"


def remove_partials(folder: Path) -> int:
    """Delete what killed writers of this machine left directly under `folder`; returns how many.

    What a living process, or another machine, is still writing is left alone.
    """
    removed = 0
    for path in list(folder.glob(f".*.{socket.gethostname()}-*.partial")):
        pid = int(path.name.rsplit("-", 2)[1])
        if _is_alive(pid):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed += 1
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def full_disk_is_a_user_error(place: Path) -> Iterator[None]:
    """Turn 'no space left' into one line that names `place`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{place}: no space left on the disk while writing; nothing half-written was kept: "
            "free some space, or choose another folder with --runs, and run again"
        ) from error


def open_bytes(path: Path) -> IO[bytes]:
    """Open a plain or compressed file for reading, by its ending."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    match path.suffix:
        case ".gz":
            import gzip

            return gzip.open(path, "rb")
        case ".bz2":
            import bz2

            return bz2.open(path, "rb")
        case ".xz":
            import lzma

            return lzma.open(path, "rb")
        case ".zst":
            import zstandard

            return zstandard.open(path, "rb")
    return path.open("rb")


def open_text(path: Path) -> TextIO:
    """Open a plain or compressed UTF-8 file for reading, by its ending."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank.

    Raises UserError naming file and line for a line that is not a JSON object.
    """
    with open_text(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}:{number}: a JSON {type(row).__name__} where an object is needed"
                    )
                yield number, row
        except (ValueError, EOFError) as error:
            raise UserError(
                f"{path}:{number}: not valid JSON lines ({error}); mend or remove the line"
            ) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
