"""Run folders -> one DuckDB file that is always whole.

    ingest(Path("runs"))     # reads what is new or changed, swaps the board, says what it did

The new board is built aside, as a copy of the old one with the changed folders' rows
replaced, and put in place by one `os.replace`. So readers see the old board or the new one,
never half of either; a kill leaves the old one; a damaged file stops the ingest before the
swap. The content depends on the files alone, not on the order or number of ingests.
One ingest runs at a time: a second one waits for the lock `.board.lock` (flock: not on
Windows, and only as good on a network file system as that system's locks).
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalsuite.errors import UserError
from evalsuite.files import full_disk_is_a_user_error
from evalsuite.progress import Progress, silent
from leaderboards.folders import KINDS, Folder, Row, find_folders, no_runs
from leaderboards.store import BOARD, OFFLINE, VERSION, reading, why_unreadable

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

HELD_ROWS = 50_000
"""Rows read from small files that wait in memory for one insert."""
SCHEMA = Path(__file__).with_name("schema.sql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """What one ingest did."""

    board: Path
    read: int
    """Folders that were new or had changed."""
    unchanged: int
    dropped: int
    """Folders of the old board that are gone from the disk."""
    runs: int
    scores: int
    items: int
    rebuilt: str | None
    """Why the old board was thrown away and built from nothing; None when it was not."""


def ingest(root: Path, *, progress: Progress = silent) -> Ingested:
    """Bring `<root>/board.duckdb` up to date with the folders below `root`.

    A board of another schema version, or one that DuckDB cannot open, is built anew from
    the folders; `Ingested.rebuilt` then says why. Raises UserError naming a damaged file, and
    leaves the board as it was.
    """
    if not root.is_dir():
        raise no_runs(root)
    if "?" in str(root.absolute()):
        raise UserError(f"{root}: DuckDB cannot write below a name with '?'; rename the folder")
    board = root / BOARD
    with _only_one(root), full_disk_is_a_user_error(board):
        _sweep_away(root)
        folders = find_folders(root)  # under the lock: an older listing would drop newer folders
        work = root / f".board.{uuid.uuid4().hex[:8]}.partial"
        work.mkdir()
        try:
            return _build(root, board, work / BOARD, folders, progress)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build(
    root: Path, board: Path, aside: Path, folders: list[Folder], progress: Progress
) -> Ingested:
    rebuilt = why_unreadable(board) if board.exists() else None
    known: dict[str, str] = {}
    if board.exists() and rebuilt is None:
        known = _known(board)
        changed = [f for f in folders if known.get(f.name) != f.state]
        gone = sorted(set(known) - {f.name for f in folders})
        if changed or gone:
            shutil.copyfile(board, aside)
    else:
        changed, gone = folders, []
    if changed or gone or not board.exists() or rebuilt:
        with _writing(aside) as con:
            columns = _columns(con)
            leaving = [*gone, *(f.name for f in changed if f.name in known)]
            if leaving:
                _delete(con, leaving, columns)
            _fill(con, changed, columns, progress)
        _swap(aside, board)
    runs, scores, items = _counts(board)
    return Ingested(
        board=board,
        read=len(changed),
        unchanged=len(folders) - len(changed),
        dropped=len(gone),
        runs=runs,
        scores=scores,
        items=items,
        rebuilt=rebuilt,
    )


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the ingest lock of `root`; the kernel lets go of it when its holder dies."""
    with (root / ".board.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sweep_away(root: Path) -> None:
    """Remove what killed ingests left behind; only the lock's holder may."""
    for path in root.glob(".board.*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _swap(aside: Path, board: Path) -> None:
    for path in (aside, aside.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.replace(aside, board)
    descriptor = os.open(board.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def _writing(aside: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the board being built, with the schema in it; one transaction."""
    import duckdb

    fresh = not aside.exists()
    con = duckdb.connect(str(aside), config=OFFLINE)
    try:
        con.execute("BEGIN")
        if fresh:
            con.execute(SCHEMA.read_text(encoding="utf-8"))
            con.execute("INSERT INTO schema_version VALUES (?)", [VERSION])
        yield con
        con.execute("COMMIT")
        con.execute("CHECKPOINT")
    finally:
        con.close()


def _known(board: Path) -> dict[str, str]:
    with reading(board) as con:
        return dict(con.execute("SELECT folder, state FROM folders").fetchall())


def _counts(board: Path) -> tuple[int, int, int]:
    with reading(board) as con:
        [found] = con.execute(
            "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM scores),"
            " (SELECT count(*) FROM items)"
        ).fetchall()
    runs, scores, items = found
    return runs, scores, items


def _delete(
    con: duckdb.DuckDBPyConnection, names: list[str], columns: dict[str, pa.Schema]
) -> None:
    import pyarrow as pa

    con.register("leaving", pa.table({"folder": pa.array(names, pa.string())}))
    for table in columns:
        con.execute(f"DELETE FROM {table} WHERE folder IN (SELECT folder FROM leaving)")
    con.unregister("leaving")


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, pa.Schema]:
    """Table -> its columns as Arrow fields, read from the schema: schema.sql is the one truth."""
    import pyarrow as pa

    types = {
        "VARCHAR": pa.string(),
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
    }
    fields: dict[str, list[pa.Field]] = {}
    for table, column, kind, nullable in con.execute(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns()"
        " WHERE NOT internal AND table_name IN (SELECT table_name FROM duckdb_tables())"
        " AND table_name <> 'schema_version' ORDER BY table_name, column_index"
    ).fetchall():
        fields.setdefault(table, []).append(pa.field(column, types[kind], nullable=nullable))
    return {table: pa.schema(listed) for table, listed in fields.items()}


def _fill(
    con: duckdb.DuckDBPyConnection,
    folders: list[Folder],
    columns: dict[str, pa.Schema],
    progress: Progress,
) -> None:
    """Read `folders` and insert their rows, many folders to a statement."""
    waiting: dict[str, list[pa.Table]] = {}
    held = 0
    for done, folder in enumerate(folders):
        progress("ingest", done, len(folders))
        for table, path, rows in KINDS[folder.kind].read(folder.path):
            if rows:
                rows = [{"folder": folder.name} | row for row in rows]
                waiting.setdefault(table, []).append(_arrow(columns[table], rows, path))
                held += len(rows)
        facts = [{"folder": folder.name, "kind": folder.kind, "state": folder.state}]
        waiting.setdefault("folders", []).append(_arrow(columns["folders"], facts, folder.path))
        if folder.kind == "scores":
            _insert_items(con, folder, columns["items"])
        if held > HELD_ROWS:
            _insert(con, waiting)
            waiting, held = {}, 0
    _insert(con, waiting)
    progress("ingest", len(folders), len(folders))


def _insert(con: duckdb.DuckDBPyConnection, waiting: dict[str, list[pa.Table]]) -> None:
    import pyarrow as pa

    for table, parts in waiting.items():
        con.register("arriving", pa.concat_tables(parts))
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM arriving")
        con.unregister("arriving")


def _arrow(schema: pa.Schema, rows: list[Row], path: Path) -> pa.Table:
    """`rows` as an Arrow table of exactly `schema`; UserError names the value that does not fit."""
    import pyarrow as pa

    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            column = pa.array(values, field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            raise UserError(_misfit(path, field, values)) from None
        if column.null_count and not field.nullable:
            raise UserError(f"{path}: {field.name} is null where a value is needed; make it again")
        if pa.types.is_floating(field.type):
            for value in values:
                if value is not None and not math.isfinite(value):
                    raise UserError(f"{path}: {field.name} is {value}, which is no score or share")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _misfit(path: Path, field: pa.Field, values: list[object]) -> str:
    import pyarrow as pa

    for value in values:
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f"{path}: {field.name} is {value!r:.80}, which is no {field.type}; make it again"
    raise AssertionError("only called when a value does not fit")


def _insert_items(con: duckdb.DuckDBPyConnection, folder: Folder, schema: pa.Schema) -> None:
    """Item rows go from Parquet to the board inside DuckDB, without passing through Python."""
    import duckdb

    path = folder.path / "items.parquet"
    names = ", ".join(f'"{name}"' for name in schema.names if name != "folder")
    checkpoint, suite = folder.path.parent.name, folder.path.name.rpartition("-")[0]
    try:
        con.execute(
            f"INSERT INTO items BY NAME SELECT ? AS folder, {names} FROM read_parquet(?)",
            [folder.name, _literal_path(path)],
        )
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
        raise UserError(_damaged(path, error)) from None
    except (duckdb.ConstraintException, duckdb.ConversionException) as error:
        raise UserError(_damaged(path, error)) from None
    [(strangers,)] = con.execute(
        "SELECT count(*) FROM items WHERE folder = ? AND (checkpoint <> ? OR suite <> ?)",
        [folder.name, checkpoint, suite],
    ).fetchall()
    if strangers:
        raise UserError(
            f"{path}: {strangers} items are of another checkpoint or suite than the folder "
            "they lie in; delete the folder and score again"
        )


def _damaged(path: Path, error: Exception) -> str:
    first = str(error).splitlines()[0]
    return f"{path}: not a readable table of items ({first}); delete its folder and score again"


def _literal_path(path: Path) -> str:
    """`path` with the characters that DuckDB would take for a pattern put in brackets."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
