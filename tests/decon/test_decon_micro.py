"""Leaks of known form, planted into the micro-world with their ground truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from decon_parts import jsonl

from decon.index import build_index
from decon.policy import load_policy
from decon.scan import scan
from evalsuite.microworld import KINDS, Leaks, documents, planted
from evalsuite.references import references
from evalsuite.suites import load_suite

WHOLE = ("verbatim", "case_punctuation", "embedded", "wrapped")
"""Forms that leave the item's words as they were: an n-gram rule must find every one."""


def test_every_whole_plant_is_found_and_nothing_else_is(tmp_path: Path) -> None:
    suite = load_suite("micro-dev")
    index = build_index(
        references(suite),
        policy=load_policy("tulu3"),
        suites={suite.name: suite.fingerprint},
    )
    leaks = Leaks(rate=0.1)
    sources, truth = {}, []
    for kind in KINDS:
        rows = documents(kind, count=400, seed=0, leaks=leaks)
        sources[kind] = [jsonl(tmp_path / f"{kind}.jsonl", rows)]
        truth += planted(kind, count=400, seed=0, leaks=leaks)
    found = defaultdict(set)
    for hit in scan(sources, index).hits:
        found[hit.document_id].add((hit.task, hit.doc_id))
    made, seen = Counter(), Counter()  # type: Counter[str], Counter[str]
    for plant in truth:
        if plant["form"] == "rephrased" and plant["document_id"].startswith("rl_"):
            continue  # a prompt's doc may hold the item's program as it was
        made[plant["form"]] += 1
        seen[plant["form"]] += (plant["task"], plant["doc_id"]) in found[plant["document_id"]]
    for form in WHOLE:
        assert made[form] > 20
        assert seen[form] == made[form], form
    # What the policy says it cannot catch; a later policy may.
    assert seen["rephrased"] == 0 < made["rephrased"]
    planted_documents = {plant["document_id"] for plant in truth}
    assert {document for document, items in found.items() if items} <= planted_documents
