"""Supervised fine-tuning: predict the assistant's turns of a conversation, and only those.

    Q: 2 + 2\nA: 4</s>     targets: the tokens of " 4</s>"

The conversation is rendered by the tokenizer's chat template. What the assistant says is found
by rendering the turns before it with the generation prompt, so that templates without
`{% generation %}` marks work too; a template whose rendering of a prefix is no prefix of the
whole is refused rather than mislabelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evalsuite.errors import UserError
from trainloop.data import Tree
from trainloop.objectives import Objective, targets
from trainloop.objectives.next_token import loss, render, spans_of
from trainloop.records import Schedule


def encode(documents: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[Tree]:
    """Ids of each rendered conversation; a target is a token that lies in an assistant's turn."""
    if not tokenizer.chat_template:
        raise UserError(
            "objective 'sft' needs a chat template, and the tokenizer has none: "
            "give the recipe's model a chat_template"
        )
    documents = list(documents)
    rendered = [_render(document, tokenizer) for document in documents]
    texts = [text for text, _ in rendered]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for (_, spans), ids, offsets in zip(
        rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        yield Tree((), (ids,), (_inside(spans, spans_of(offsets)),))


def _render(document: dict[str, Any], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the character spans of the assistant's turns."""
    messages = document.get("messages")
    if not messages:
        raise UserError(
            f"document {document.get('id')!r} has no 'messages', which objective 'sft' needs; "
            "give its source prompt and response templates"
        )
    text = render(tokenizer, messages)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:turn], add_generation_prompt=True)
        through = text if turn == len(messages) - 1 else render(tokenizer, messages[: turn + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise UserError(
                f"document {document.get('id')!r}: the chat template does not render the first "
                f"{turn + 1} turns as a prefix of all turns, so the assistant's tokens cannot be "
                "told; give the recipe's model a chat_template that does"
            )
        spans.append((len(before), len(through)))
    return text, spans


def _inside(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[bool]:
    """Per token, whether it begins inside one of the ascending `spans`."""
    wanted, number = [], 0
    for start, end in offsets:
        while number < len(spans) and start >= spans[number][1]:
            number += 1
        wanted.append(number < len(spans) and start >= spans[number][0] and end > start)
    return wanted


OBJECTIVE = Objective(
    name="sft",
    version=2,
    documents="conversation",
    encode=encode,
    loss=loss,
    total=targets,
    # Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), its 8B model.
    defaults={
        "learning_rate": 5e-6,
        "schedule": Schedule(kind="linear", warmup=0.03),
        "batch": 128,
        "epochs": 2,
        "weight_decay": 0.0,
    },
)
