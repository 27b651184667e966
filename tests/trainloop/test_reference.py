"""Reference log-probabilities: the model's own numbers, once, whatever stops the computation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evalsuite.errors import UserError
from trainloop import data, ranks, reference
from trainloop import model as models
from trainloop.data import Batch, Tokens
from trainloop.objectives import load_objective
from trainloop.policy import Policy, tensors

ALONE = ranks.Ranks(0, 1, torch.device("cpu"), "alone")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "off")
PAIRS = 11


@pytest.fixture(scope="module")
def prefs(world, tmp_path_factory) -> SimpleNamespace:
    """A source of pairs as tokens, and a model."""
    root = tmp_path_factory.mktemp("prefs")
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": " ".join(rng.choice(WORDS, 3))}],
            "chosen": " ".join(rng.choice(WORDS, rng.integers(1, 6))),
            "rejected": "one " + " ".join(rng.choice(WORDS, rng.integers(1, 6))),
        }
        for number in range(PAIRS)
    ]
    (root / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = models.fresh_model(world.model, world.tokenizer, seed=4).double().eval()
    return SimpleNamespace(tokens=tokens_of(world, root, 64), model=model, root=root)


def tokens_of(world: SimpleNamespace, root: Path, length: int) -> Tokens:
    return data.tokenise(
        "prefs",
        [root / "prefs.jsonl"],
        world.tokenizer,
        "tokenizer",
        load_objective("dpo"),
        length,
        root=root,
        data_id="prefs",
    )


class Counted:
    """The log-probabilities of a batch's targets; stops as told after so many calls."""

    def __init__(self, model: Any, stops_after: int | None = None) -> None:
        self.policy = Policy(model)
        self.calls: list[int] = []
        self.stops_after = stops_after

    @torch.no_grad()
    def __call__(self, batch: Batch) -> np.ndarray:
        if len(self.calls) == self.stops_after:
            raise InterruptedError("killed")
        self.calls.append(batch.documents)
        held = tensors(batch, "cpu", dtype=torch.float64)
        return self.policy(held).logprobs.numpy()


def ask(prefs: SimpleNamespace, logprobs: Any, root: Path, **other: Any) -> np.ndarray:
    settings = {"weights_id": "w", "root": root, "ranks": ALONE} | other
    tokens = settings.pop("tokens", prefs.tokens)
    return reference.reference({"prefs": tokens}, logprobs, **settings)["prefs"]


def never(batch: Batch) -> np.ndarray:
    raise AssertionError("the numbers are on disk")


def test_they_are_the_models_own_sums_of_each_answer_read_alone(prefs, tmp_path):
    found = ask(prefs, Counted(prefs.model), tmp_path)
    assert found.shape == (PAIRS, 2)
    for number in range(PAIRS):
        tree = prefs.tokens.tree(number)
        for branch, targets, value in zip(tree.branches, tree.targets, found[number], strict=True):
            ids = torch.tensor([[*tree.prompt, *branch]])
            with torch.no_grad():
                logits = prefs.model(ids).logits[0].log_softmax(-1)
            places = [len(tree.prompt) + n for n, asked in enumerate(targets) if asked]
            alone = sum(float(logits[place - 1, ids[0, place]]) for place in places)
            assert value == pytest.approx(alone, rel=1e-10)


def test_a_second_call_reads_them_and_other_weights_precision_or_tokens_do_not(
    world, prefs, tmp_path
):
    sources = {"prefs": prefs.tokens}
    assert reference.cached(sources, weights_id="w", root=tmp_path) is None
    first = ask(prefs, Counted(prefs.model), tmp_path)
    assert np.array_equal(ask(prefs, never, tmp_path), first)
    again = reference.cached(sources, weights_id="w", root=tmp_path)
    assert again is not None and np.array_equal(again["prefs"], first)
    for other in (
        {"weights_id": "v"},
        {"precision": "bfloat16"},
        {"tokens": tokens_of(world, prefs.root, 10)},
    ):
        counted = Counted(prefs.model)
        ask(prefs, counted, tmp_path, **other)
        assert counted.calls, other
    assert len(list((tmp_path / "reference").iterdir())) == 4


def test_what_stops_it_leaves_nothing_whole_and_the_next_call_goes_on(prefs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "PART", 4)
    monkeypatch.setattr(reference, "TOGETHER", 2)
    whole = ask(prefs, Counted(prefs.model), tmp_path / "undisturbed")
    with pytest.raises(InterruptedError):
        ask(prefs, Counted(prefs.model, stops_after=3), tmp_path)
    assert reference.cached({"prefs": prefs.tokens}, weights_id="w", root=tmp_path) is None
    rest = Counted(prefs.model)
    found = ask(prefs, rest, tmp_path)
    assert rest.calls == [2, 2, 2, 1], "the first part of four was kept"
    assert np.array_equal(found, whole)
    [folder] = (tmp_path / "reference").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["logprobs.npy", "reference.json"]


def test_weights_that_give_no_numbers_are_a_user_error_and_nothing_is_kept(prefs, tmp_path):
    def broken(batch: Batch) -> np.ndarray:
        return np.full(batch.target_tokens, np.nan)

    with pytest.raises(UserError, match=r"'prefs'.*NaN.*0 to 10"):
        ask(prefs, broken, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_damaged_file_is_named(prefs, tmp_path):
    ask(prefs, Counted(prefs.model), tmp_path)
    [file] = tmp_path.rglob("logprobs.npy")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"logprobs\.npy: cannot be read"):
        ask(prefs, never, tmp_path)


def test_a_batch_is_filled_with_the_numbers_of_its_documents_in_its_order(prefs):
    found = {"a": np.arange(8.0).reshape(4, 2), "b": -np.arange(8.0).reshape(4, 2)}
    documents = [("b", 3), ("a", 0), ("b", 1)]
    batch = data.batch_of([prefs.tokens.tree(number) for number in (3, 0, 1)])
    filled = reference.filled(batch, documents, found)
    assert filled.of_sequence["reference"].tolist() == [-6.0, -7.0, 0.0, 1.0, -2.0, -3.0]
    pieces = data.micro_batches(filled, rank=0, ranks=1, tokens=1)
    assert sorted(p.of_sequence["reference"].tolist() for p in pieces) == sorted(
        [[-6.0, -7.0], [0.0, 1.0], [-2.0, -3.0]]
    )
