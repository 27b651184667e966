"""Documents to hits, and hits to one report.

    report = scan({"web": [Path("web.jsonl.gz")]}, index)
    report.certificate.sources["web"].contaminated      report.hits[0].spans

`scan_shard` is the unit of work: one file in, one small result out, no state between files.
A document that shares no n-gram with any item costs reading, hashing and one failed look-up
per word. Items are compared with one document at a time: one that is spread over several
documents is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from decon.documents import Moved, Shard, read, shards
from decon.index import ReferenceIndex
from decon.minhash import NearItems
from decon.ngrams import (
    NORMALISATION,
    Words,
    covered_words,
    gram_hashes,
    probe,
    tokenise,
)
from decon.records import (
    Cell,
    Certificate,
    Document,
    Hit,
    ItemVerdict,
    Malformed,
    NearHit,
    Report,
    SourceCount,
)
from evalsuite.errors import UserError
from evalsuite.files import content_id, sha256_file
from evalsuite.progress import Progress, silent

EXCERPT = 600
"""Most characters of a document shown in a hit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """One text of the index found in one document."""

    text: int
    covered: int
    spans: list[tuple[int, int]]


@dataclass(kw_only=True, slots=True)
class ShardResult:
    """What was found in one shard."""

    shard: Shard
    read: int = 0
    hits: list[tuple[int, Hit]] = field(default_factory=list)
    """(text number, hit)"""
    near: list[tuple[int, NearHit]] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    removed: dict[int, str] = field(default_factory=dict)
    """Line -> whole row as JSON text."""
    best: dict[int, int] = field(default_factory=dict)
    """Text number -> most words covered by any one document."""


def scan(
    sources: Mapping[str, Sequence[Path]],
    index: ReferenceIndex,
    *,
    fields: Sequence[str] = (),
    malformed: Literal["error", "skip"] = "error",
    progress: Progress = silent,
) -> Report:
    """Look for the index's texts in all documents of all sources; nothing is written.

    `fields` names the row fields to read instead of the known ones. A malformed line is a
    UserError naming file and line, or counted and listed with malformed="skip".
    """
    found = find_shards(sources, fields)
    identity = identify(found, index, fields)
    return report(
        scan_shards(found, index, malformed=malformed, progress=progress), index, identity
    )


def find_shards(
    sources: Mapping[str, Sequence[Path]], fields: Sequence[str]
) -> dict[str, list[Shard]]:
    """Source name -> its shards."""
    if not sources:
        raise UserError("there is no source to scan; name at least one file")
    return {name: shards(name, paths, fields) for name, paths in sources.items()}


def identify(
    found: Mapping[str, Sequence[Shard]], index: ReferenceIndex, fields: Sequence[str]
) -> Certificate:
    """The certificate before the scan: its id and all that decides it, no findings yet."""
    fingerprints = {
        name: content_id([[shard.name, sha256_file(shard.path)] for shard in files])
        for name, files in found.items()
    }
    policy = index.policy.as_json()
    decisive = {k: v for k, v in policy.items() if k not in ("description", "cannot_catch")}
    references = index.fingerprint
    identity = [decisive, NORMALISATION, references, list(fields), index.suites, fingerprints]
    return Certificate(
        id=content_id(identity),
        policy=policy,
        normalisation=NORMALISATION,
        references=references,
        fields=list(fields),
        suites=index.suites,
        sources={
            name: SourceCount(
                fingerprint=fingerprints[name],
                files=[str(shard.path) for shard in files],
                read=0,
                kept=0,
                removed=0,
                malformed=0,
                contaminated=False,
                contaminated_tasks=[],
            )
            for name, files in found.items()
        },
        tasks=list(index.tasks),
        cells=[],
        dirty_items={},
    )


def scan_shards(
    found: Mapping[str, Sequence[Shard]],
    index: ReferenceIndex,
    *,
    malformed: Literal["error", "skip"],
    progress: Progress,
) -> list[ShardResult]:
    """`scan_shard` over every shard of every source."""
    near = NearItems(index, index.policy.near) if index.policy.near else None
    results = []
    for name, files in found.items():
        sizes = [shard.path.stat().st_size for shard in files]
        for i, shard in enumerate(files):
            moved = _mover(progress, f"scan {name}", sum(sizes[:i]), sum(sizes))
            results.append(scan_shard(shard, index, near, malformed=malformed, moved=moved))
        progress(f"scan {name}", sum(sizes), sum(sizes))
    return results


def _mover(progress: Progress, label: str, before: int, total: int) -> Moved:
    return lambda position: progress(label, min(before + position, total - 1), total)


def scan_shard(
    shard: Shard,
    index: ReferenceIndex,
    near: NearItems | None = None,
    *,
    malformed: Literal["error", "skip"] = "error",
    moved: Callable[[int], None] = lambda position: None,
) -> ShardResult:
    """Look for the index's texts in every document of one file."""
    result = ShardResult(shard=shard)
    for document, row in read(shard, moved):
        result.read += 1
        if isinstance(document, Malformed):
            if malformed == "error":
                raise UserError(
                    f"{document.file}:{document.line}: {document.problem}; mend or remove the "
                    "line, or count and leave out such lines with --malformed skip"
                )
            result.malformed.append(document)
            continue
        words = tokenise(document.text)
        matches = find(words, index, result.best)
        for match in matches:
            result.hits.append((match.text, _hit(shard, document, match, index)))
        if matches:
            result.removed[document.line] = row
        if near is not None:
            hit_items = {index.texts[match.text].item for match in matches}
            for text, jaccard in near.find(words):
                beside = index.texts[text].item in hit_items
                found = _near_hit(shard, document, text, jaccard, beside, index)
                result.near.append((text, found))
    return result


def find(words: Words, index: ReferenceIndex, best: dict[int, int] | None = None) -> list[Match]:
    """The texts that the policy calls hit in a document of these words, in the index's order.

    `best`, when given, keeps the most words that any document covered of each text.
    """
    n = index.policy.ngram
    if len(words) < n:
        return []
    grams = gram_hashes(words.hashes, n, np.uint64(index.bits))
    places, numbers = probe(
        grams,
        words.chars,
        words.at,
        n,
        index.slots,
        index.gram_hash,
        index.gram_word,
        index.chars,
        index.word_at,
    )
    if not len(places):
        return []
    texts, counts = covered_words(
        np.unique(numbers), index.post_at, index.posts, index.word_text, n
    )
    matches = []
    for text, covered in zip(texts.tolist(), counts.tolist(), strict=True):
        if best is not None and covered > best.get(text, 0):
            best[text] = covered
        if index.policy.is_hit(covered, index.words(text)):
            own = index.word_gram[index.text_at[text] : index.text_at[text + 1]]
            shared = places[np.isin(numbers, own)]
            matches.append(Match(text=text, covered=covered, spans=_spans(shared, words, n)))
    return matches


def _spans(places: np.ndarray, words: Words, n: int) -> list[tuple[int, int]]:
    """Runs of words that lie in an n-gram beginning at one of `places`, as character spans."""
    breaks = np.flatnonzero(np.diff(places) > n) + 1
    firsts = places[np.concatenate([[0], breaks])]
    lasts = places[np.concatenate([breaks - 1, [len(places) - 1]])] + n - 1
    return list(zip(words.starts[firsts].tolist(), words.ends[lasts].tolist(), strict=True))


def _hit(shard: Shard, document: Document, match: Match, index: ReferenceIndex) -> Hit:
    text = index.texts[match.text]
    item = index.items[text.item]
    task = index.tasks[item.task]
    start = max(0, match.spans[0][0] - 60)
    return Hit(
        source=shard.source,
        file=str(shard.path),
        line=document.line,
        document_id=document.id,
        suite=task.suite,
        task=task.task,
        doc_id=item.doc_id,
        field=text.field,
        overlap=match.covered / index.words(match.text),
        spans=match.spans,
        document_text=document.text[start : start + EXCERPT],
        excerpt_start=start,
        reference_text=text.text,
    )


def _near_hit(
    shard: Shard, document: Document, number: int, jaccard: float, hit: bool, index: ReferenceIndex
) -> NearHit:
    text = index.texts[number]
    item = index.items[text.item]
    task = index.tasks[item.task]
    return NearHit(
        source=shard.source,
        file=str(shard.path),
        line=document.line,
        document_id=document.id,
        suite=task.suite,
        task=task.task,
        doc_id=item.doc_id,
        field=text.field,
        jaccard=jaccard,
        ngram_hit=hit,
        document_text=document.text[:EXCERPT],
        reference_text=text.text,
    )


def report(results: Sequence[ShardResult], index: ReferenceIndex, identity: Certificate) -> Report:
    """Everything found, counted by source, task and item; `identity` is filled in."""
    cells = [cell for name in identity.sources for cell in _cells(name, results, index)]
    sources = {}
    for name, count in identity.sources.items():
        own = [result for result in results if result.shard.source == name]
        tasks = [f"{c.suite}/{c.task}" for c in cells if c.source == name and c.contaminated]
        total = sum(result.read for result in own)
        removed = sum(len(result.removed) for result in own)
        malformed = sum(len(result.malformed) for result in own)
        sources[name] = SourceCount(
            fingerprint=count.fingerprint,
            files=count.files,
            read=total,
            kept=total - removed - malformed,
            removed=removed,
            malformed=malformed,
            contaminated=bool(tasks),
            contaminated_tasks=tasks,
        )
    items = _items(results, index)
    dirty: dict[str, dict[str, list[int]]] = {task.suite: {} for task in index.tasks}
    for verdict in items:
        if verdict.verdict == "hit":
            dirty[verdict.suite].setdefault(verdict.task, []).append(verdict.doc_id)
    return Report(
        certificate=Certificate(
            **{
                **{f: getattr(identity, f) for f in Certificate.__dataclass_fields__},
                "sources": sources,
                "cells": cells,
                "dirty_items": dirty,
            }
        ),
        hits=[hit for result in results for _, hit in result.hits],
        near=[hit for result in results for _, hit in result.near],
        items=items,
        malformed=[line for result in results for line in result.malformed],
    )


def _cells(source: str, results: Sequence[ShardResult], index: ReferenceIndex) -> list[Cell]:
    own = [result for result in results if result.shard.source == source]
    items: list[set[int]] = [set() for _ in index.tasks]
    documents: list[set[tuple[str, int]]] = [set() for _ in index.tasks]
    near_items: list[set[int]] = [set() for _ in index.tasks]
    near_documents: list[set[tuple[str, int]]] = [set() for _ in index.tasks]
    for result in own:
        for text, hit in result.hits:
            item = index.texts[text].item
            items[index.items[item].task].add(item)
            documents[index.items[item].task].add((hit.file, hit.line))
        for text, near in result.near:
            item = index.texts[text].item
            near_items[index.items[item].task].add(item)
            near_documents[index.items[item].task].add((near.file, near.line))
    return [
        Cell(
            source=source,
            suite=task.suite,
            task=task.task,
            items_hit=len(items[i]),
            share=len(items[i]) / task.items,
            documents=len(documents[i]),
            contaminated=index.policy.is_contaminated(len(items[i]), task.items),
            near_items=len(near_items[i]),
            near_documents=len(near_documents[i]),
        )
        for i, task in enumerate(index.tasks)
    ]


def _items(results: Sequence[ShardResult], index: ReferenceIndex) -> list[ItemVerdict]:
    best = [0.0] * len(index.items)
    longest = [item.short_words for item in index.items]
    fields: list[list[str]] = [[] for _ in index.items]
    documents: list[set[tuple[str, str, int]]] = [set() for _ in index.items]
    for number, text in enumerate(index.texts):
        words = index.words(number)
        covered = max((result.best.get(number, 0) for result in results), default=0)
        best[text.item] = max(best[text.item], covered / words)
        longest[text.item] = max(longest[text.item], words)
        fields[text.item].append(text.field)
    for result in results:
        for number, hit in result.hits:
            documents[index.texts[number].item].add((hit.source, hit.file, hit.line))
    return [
        ItemVerdict(
            suite=index.tasks[item.task].suite,
            task=index.tasks[item.task].task,
            doc_id=item.doc_id,
            verdict="hit" if documents[i] else "clean" if fields[i] else "too_short",
            fields=list(dict.fromkeys(fields[i])),
            words=longest[i],
            overlap=best[i],
            documents=len(documents[i]),
            sources=sorted({source for source, _, _ in documents[i]}),
        )
        for i, item in enumerate(index.items)
    ]
