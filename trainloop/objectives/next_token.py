"""Pretraining and midtraining: predict every next token of a text.

    "the cat" -> [the, cat, </s>], targets [no, yes, yes]

The tokenizer's own start token, if it has one, opens each document, and its end token closes
it. A document's first token is never a target: nothing stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from evalsuite.errors import UserError
from trainloop.data import Tree
from trainloop.objectives import Loss, Objective, targets


def encode(documents: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[Tree]:
    """Ids with the end token, and targets; a conversation's turns are rendered by its template."""
    documents = list(documents)
    texts = [_text(document, tokenizer) for document in documents]
    encoded = tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
    for document, ids in zip(documents, encoded, strict=True):
        if "text" not in document and len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]  # the template had written a start token, too
        if ids and ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        yield Tree((), (ids,), ([False] + [True] * (len(ids) - 1) if ids else [],))


def _text(document: dict[str, Any], tokenizer: Any) -> str:
    if "text" in document:
        return str(document["text"])
    if not tokenizer.chat_template:
        raise UserError(
            f"document {document.get('id')!r} is a conversation, but the tokenizer has no chat "
            "template: give the recipe's model a chat_template"
        )
    return render(tokenizer, document["messages"])


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """The turns as one text by the chat template; UserError when it is no template for them."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as error:
        raise UserError(
            f"the chat template cannot render a conversation ({error}): mend the recipe's "
            "model.chat_template, or the conversation's roles"
        ) from error


def spans_of(offsets: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where each token of a text begins and ends, in characters; [s, s) for one without text.

    Some tokenizers (GPT-NeoX's, so Pythia's and OLMo's) trim blanks off their offsets, and a token
    of blanks alone looks empty: it begins where the one before it ends.
    """
    found, before = [], 0
    for start, end in offsets:
        found.append((min(start, before) if start == end else start, end))
        before = max(before, end)
    return found


def loss(outputs: Any, batch: Any, options: Any) -> Loss:
    """Cross-entropy summed over the target tokens, in nats, as float32 or finer."""
    return Loss(-outputs.logprobs.sum())


OBJECTIVE = Objective(
    name="next_token", version=2, documents="text", encode=encode, loss=loss, total=targets
)
