"""Take every document that holds an eval item out of the training data, and say so.

    certificate = clean({"web": [Path("web.jsonl.gz")]}, index, Path("runs/decon/3f2a"))

    runs/decon/3f2a/  certificate.json  hits.jsonl  items.jsonl  near.jsonl  malformed.jsonl
                      clean/web/web.jsonl.gz        the kept rows, byte for byte
                      removed/web.jsonl             the removed documents, and why

A document goes when any item is hit in it, whether or not its source is contaminated (that is a
verdict on the source, for the reader to act on). The folder appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from decon.documents import write_kept
from decon.index import ReferenceIndex
from decon.records import Certificate, Hit, Report, as_json, read_certificate
from decon.scan import ShardResult, find_shards, identify, report, scan_shards
from evalsuite.errors import UserError
from evalsuite.files import publish, write_json
from evalsuite.progress import Progress, silent


def clean(
    sources: Mapping[str, Sequence[Path]],
    index: ReferenceIndex,
    out: Path,
    *,
    fields: Sequence[str] = (),
    malformed: Literal["error", "skip"] = "error",
    progress: Progress = silent,
) -> Certificate:
    """Scan all shards, publish the folder `out` and return its certificate.

    If `out` holds the certificate of the same suites, sources and policy, it is returned and
    nothing is done again; if it holds anything else, that is a UserError. A malformed line is a
    UserError too, or left out, counted and listed with malformed="skip".
    """
    found = find_shards(sources, fields)
    identity = identify(found, index, fields)
    if out.exists():
        return existing(out, identity.id)
    results = scan_shards(found, index, malformed=malformed, progress=progress)
    whole = report(results, index, identity)
    with publish(out) as folder:
        written = _write_clean(folder, results, progress)
        certificate = dataclasses.replace(
            whole.certificate, clean={name: written.get(name, []) for name in found}
        )
        for name in found:
            _write_removed(folder / "removed" / f"{name}.jsonl", name, results)
        write_report(folder, dataclasses.replace(whole, certificate=certificate))
    # Another process may have published under this name first.
    return existing(out, certificate.id)


def existing(out: Path, wanted: str) -> Certificate:
    """The certificate in `out` if it has the id `wanted`; else a UserError."""
    if not (out / "certificate.json").exists():
        raise UserError(f"{out}: exists and holds no certificate; choose another folder with --out")
    certificate = read_certificate(out)
    if certificate.id != wanted:
        raise UserError(
            f"{out}: holds certificate {certificate.id}, of other suites, data or policy than "
            f"{wanted}; choose another folder with --out, or delete this one"
        )
    return certificate


def write_report(folder: Path, found: Report) -> None:
    """Write certificate.json and the lists it counts into `folder`."""
    _write_lines(folder / "hits.jsonl", map(as_json, found.hits))
    _write_lines(folder / "near.jsonl", map(as_json, found.near))
    _write_lines(folder / "items.jsonl", map(as_json, found.items))
    _write_lines(folder / "malformed.jsonl", map(as_json, found.malformed))
    write_json(folder / "certificate.json", as_json(found.certificate))


def _write_clean(
    folder: Path, results: Sequence[ShardResult], progress: Progress
) -> dict[str, list[str]]:
    written: dict[str, list[str]] = {}
    for done, result in enumerate(results, 1):
        place = Path("clean") / result.shard.source / result.shard.name
        drop = {*result.removed, *(line.line for line in result.malformed)}
        if write_kept(result.shard, folder / place, drop):
            written.setdefault(result.shard.source, []).append(place.as_posix())
        progress("write cleaned shards", done, len(results))
    return written


def _write_removed(path: Path, source: str, results: Sequence[ShardResult]) -> None:
    lines = []
    for result in results:
        if result.shard.source != source:
            continue
        why: dict[int, list[dict[str, Any]]] = {}
        ids = {}
        for _, hit in result.hits:
            why.setdefault(hit.line, []).append(_reason(hit))
            ids[hit.line] = hit.document_id
        for line, row in result.removed.items():
            head = {
                "file": str(result.shard.path),
                "line": line,
                "document_id": ids[line],
                "why": why[line],
            }
            # The row is JSON already; parsing and writing it again could change it.
            lines.append(f'{_json(head)[:-1]},"document":{row}}}\n')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _reason(hit: Hit) -> dict[str, Any]:
    return {
        "suite": hit.suite,
        "task": hit.task,
        "doc_id": hit.doc_id,
        "field": hit.field,
        "overlap": hit.overlap,
    }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(_json(row) + "\n")


def _json(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as broken web pages have
        return json.dumps(row, separators=(",", ":"))
    return text
