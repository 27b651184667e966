"""A small source, tokenizer and model that a stage can be trained on in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainloop import data
from trainloop import model as models
from trainloop.objectives import load_objective
from trainloop.records import Model, NewTokenizer, Stage

CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:"
    "{% else %} {{ m.content }}\n{{ eos_token }}{% endif %}{% endfor %}"
)
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "off", "with", "one", "hat")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def small_stage(**changes: Any) -> Stage:
    """A settled stage of 12 steps over source `a`."""
    settings: dict[str, Any] = {
        "name": "pretrain",
        "objective": "next_token",
        "mixture": {"a": 1.0},
        "tokens": 12 * 128,
        "sequence_length": 32,
        "batch_tokens": 128,
        "learning_rate": 1e-2,
        "score_every": 4 * 128,
    }
    stage = Stage(**(settings | changes))
    return stage.settled(load_objective(stage.objective).defaults, {})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Shards of text and of conversations, a tokenizer of 300 tokens, and a model description."""
    root = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(300)]
    text_file, chat_file = root / "a.jsonl", root / "chat.jsonl"
    text_file.write_text(
        "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
    )
    turns = [
        {"role": "user", "content": "who sat ?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "where ?"},
        {"role": "assistant", "content": "on a mat"},
    ]
    chat_file.write_text(
        "".join(json.dumps({"id": str(n), "messages": turns}) + "\n" for n in range(40))
    )
    model = Model(
        config=LLAMA,
        tokenizer=NewTokenizer(vocab_size=300, train_on=["a"]),
        chat_template=CHAT,
    )
    folder = models.new_tokenizer(model, [[text_file]], ["a"], root=root)
    return SimpleNamespace(
        root=root,
        texts=texts,
        text_file=text_file,
        chat_file=chat_file,
        model=model,
        tokenizer=models.load_tokenizer(folder, None),
    )


def tokens_of(world: SimpleNamespace, root: Path, objective: str = "next_token") -> data.Tokens:
    """The world's text (or conversations, for sft) as tokens."""
    file = world.chat_file if objective == "sft" else world.text_file
    return data.tokenise(
        "a",
        [file],
        world.tokenizer,
        "tokenizer",
        load_objective(objective),
        32,
        root=root,
        data_id=file.name,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The mini recipe, run to its end in this process. Tests read it; those that write copy it."""
    from tests.trainloop import minirun

    folder = tmp_path_factory.mktemp("finished")
    recipe = minirun.write_recipe(folder)
    prepared, run = minirun.finish(recipe, folder / "runs")
    return SimpleNamespace(
        folder=folder, recipe=recipe, root=folder / "runs", prepared=prepared, run=run
    )
