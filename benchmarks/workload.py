"""What bench_train.py and bench_rl.py train on: real text, its tokenizer, fresh weights.

    made = workload(Path("work"), data, "5M")     # made.model is a Hugging Face folder
    made.files["sft"]  ->  [work/rows/sft.jsonl]  # canonical rows, as trainloop.sources writes them

`sft`: GSM8K train and the chosen dialogues of HH-RLHF, shuffled, as conversations: ragged. `pairs`:
HH-RLHF's pairs. `text`: web documents of C4. `prompts`: GSM8K questions. All orders come from one
seed. Made once for each folder and size.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainloop.model import fresh_model, load_tokenizer, new_tokenizer
from trainloop.records import Model, NewTokenizer

CHAT = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""No token spans the border of prompt and answer, where sides may differ about what is a target."""
MODELS: dict[str, dict[str, int]] = {
    "5M": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8}
    | {"num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 8192},
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12}
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 24576},
}
"""Shapes of Llama, embeddings tied; those of bench_scoring.py."""
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Where everything lies."""

    folder: Path
    model: Path
    """Weights and tokenizer."""
    files: dict[str, list[Path]]


def workload(folder: Path, data: Path, size: str) -> Workload:
    """Rows, tokenizer and weights of a model of `size` under `folder`, made when missing."""
    makers = {"sft": conversations, "pairs": pairs, "text": texts, "prompts": prompts}
    files = {name: [folder / "rows" / f"{name}.jsonl"] for name in makers}
    for name, make in makers.items():
        if not files[name][0].is_file():
            write(files[name][0], make(data))
    model = folder / f"model-{size}"
    if not (model / "config.json").is_file():
        shape = dict(MODELS[size])
        record = Model(
            config={
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
            }
            | {k: v for k, v in shape.items() if k != "vocab_size"},
            tokenizer=NewTokenizer(vocab_size=shape["vocab_size"], train_on=["sft", "text"]),
            chat_template=CHAT,
        )
        made = new_tokenizer(record, [files["sft"], files["text"]], ["1", "1"], root=folder)
        tokenizer = load_tokenizer(made, CHAT)
        fresh = fresh_model(record, tokenizer, seed=SEED)
        fresh.save_pretrained(model)
        tokenizer.save_pretrained(model)
    return Workload(folder=folder, model=model, files=files)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The rows in an order drawn from the seed, as JSON lines with ids."""
    shuffled = list(rows)
    random.Random(SEED).shuffle(shuffled)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for number, row in enumerate(shuffled):
            out.write(json.dumps({"id": f"{path.stem}-{number}"} | row) + "\n")


def gsm8k(data: Path) -> Iterator[dict[str, str]]:
    """Questions and answers of GSM8K train."""
    with (data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def dialogues(data: Path) -> Iterator[tuple[list[dict[str, str]], str, str]]:
    """(turns before, better answer, worse answer) of HH-RLHF."""
    path = data / "hh_rlhf" / "harmless-base_test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            better, worse = turns(row["chosen"]), turns(row["rejected"])
            same = better[:-1] == worse[:-1] and better[-1]["content"] != worse[-1]["content"]
            if same and better[-1]["content"] and worse[-1]["content"] and len(better) > 1:
                yield better[:-1], better[-1]["content"], worse[-1]["content"]


def turns(text: str) -> list[dict[str, str]]:
    """A dialogue of HH-RLHF, "\\n\\nHuman: ...\\n\\nAssistant: ...", as messages."""
    made = []
    for part in text.split("\n\nHuman: ")[1:]:
        asked, *answers = part.split("\n\nAssistant: ")
        made.append({"role": "user", "content": asked.strip()})
        made += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    if not made or made[-1]["role"] != "assistant":
        return [{"role": "assistant", "content": ""}]
    return made


def conversations(data: Path) -> Iterator[dict[str, Any]]:
    """GSM8K train and HH-RLHF's better dialogues."""
    for row in gsm8k(data):
        asked = {"role": "user", "content": row["question"]}
        yield {"messages": [asked, {"role": "assistant", "content": row["answer"]}]}
    for before, better, _ in dialogues(data):
        yield {"messages": [*before, {"role": "assistant", "content": better}]}


def pairs(data: Path) -> Iterator[dict[str, Any]]:
    """HH-RLHF's pairs."""
    for before, better, worse in dialogues(data):
        yield {"messages": before, "chosen": better, "rejected": worse}


def texts(data: Path) -> Iterator[dict[str, Any]]:
    """Web documents of C4."""
    for path in sorted((data / "c4_sample").glob("*.json*")):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            yield from ({"text": json.loads(line)["text"]} for line in lines)


def prompts(data: Path) -> Iterator[dict[str, Any]]:
    """GSM8K train questions, with what their verifier needs."""
    for row in gsm8k(data):
        asked = [{"role": "user", "content": row["question"]}]
        gold = row["answer"].split("####")[-1].strip()
        yield {"messages": asked, "answer": gold, "verifier": "gsm8k", "doc": row}
