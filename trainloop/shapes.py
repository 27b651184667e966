"""A source's rows in canonical shape: a text, a conversation, a pair or a prompt.

    {"text": "..."}                                      -> {"id", "text"}
    {"messages": [user, assistant]}                      -> {"id", "messages"}
    {"chosen": [user, good], "rejected": [user, bad]}    -> {"id", "messages": [user],
                                                             "chosen": "good", "rejected": "bad"}
    {"prompt": "2 + 2 ?", "answer": "4"}                 -> {"id", "messages": [user],
        of a source with `verifier: gsm8k`                   "answer": "4", "verifier", "doc"}

A pair's row has chosen and rejected: lists of messages that share all but their last (as in Tulu
3's and UltraFeedback's data), texts after a prompt, or two transcripts that begin "Human:" (as
in HH-RLHF). A prompt's row has an answer (or ground_truth), and its verifier or the source
names one; `doc` is what the verifier judges by, the row's other fields where it brings none.
Where the recipe gives templates, they make all of this from any fields.

A pair that cannot teach (both answers alike, an empty one, no common prompt) is Unusable: such
rows of public data are counted, named and left out. Anything else wrong is a UserError.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from evalsuite import verifiers
from evalsuite.errors import UserError, did_you_mean
from trainloop.records import Source

Kind = Literal["text", "conversation", "pair", "prompt"]
Messages = list[dict[str, Any]]

LONGEST = 8_000
"""Characters after which a text is cut at the next paragraph end."""
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class Unusable(Exception):
    """A row that is whole but teaches nothing; says why, in a few words."""


def kind_of(document: Mapping[str, Any]) -> Kind:
    """What a canonical row is."""
    if "text" in document:
        return "text"
    if "chosen" in document:
        return "pair"
    return "prompt" if "verifier" in document else "conversation"


def documents(
    name: str, source: Source, key: str, place: str, row: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row as documents of the canonical shape; `key` is the id of one that brings none.

    Raises UserError naming `place` for a row that is none, and Unusable.
    """
    if source.prompt is not None:
        yield _filled(source, key, place, row)
        return
    if source.template is not None:
        yield from cut(key, fill(source.template, row, place))
        return
    key = str(row.get("id", key))
    where = f"{place}: source {name!r}"
    if "chosen" in row and "rejected" in row:
        yield {"id": key} | _pair(where, row)
    elif source.verifier is not None or "verifier" in row:
        yield {"id": key} | _prompt(source, where, row)
    elif isinstance(row.get("messages"), list):
        yield {"id": key, "messages": _messages(where, "messages", row["messages"])}
    elif isinstance(row.get("text"), str):
        yield from cut(key, row["text"])
    else:
        raise UserError(
            f"{where} needs a field 'text' or 'messages', 'chosen' and 'rejected', or a verifier, "
            f"but the row has {', '.join(map(repr, row))}; name the fields with template, or "
            "prompt and response (chosen and rejected, answer and verifier)"
        )


def _filled(source: Source, key: str, place: str, row: dict[str, Any]) -> dict[str, Any]:
    assert source.prompt is not None
    asked = {"role": "user", "content": fill(source.prompt, row, place)}
    if source.response is not None:
        said = {"role": "assistant", "content": fill(source.response, row, place)}
        return {"id": key, "messages": [asked, said]}
    if source.chosen is not None and source.rejected is not None:
        chosen, rejected = (fill(each, row, place) for each in (source.chosen, source.rejected))
        return {"id": key} | _checked_pair([asked], chosen, rejected)
    assert source.answer is not None and source.verifier is not None
    answer = fill(source.answer, row, place)
    return {"id": key} | _checked_prompt(place, [asked], answer, source.verifier, row)


# Pairs


def _pair(where: str, row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    before: Messages = []
    for field in ("messages", "prompt"):
        if isinstance(row.get(field), list):
            before = _messages(where, field, row[field])
            break
    if isinstance(chosen, str) and isinstance(rejected, str):
        if before:
            return _checked_pair(before, chosen, rejected)
        if isinstance(row.get("prompt"), str):
            return _checked_pair([_user(row["prompt"])], chosen, rejected)
        if not all(text.lstrip().startswith("Human:") for text in (chosen, rejected)):
            raise UserError(
                f"{where}: 'chosen' and 'rejected' are texts without a 'prompt' or 'messages' "
                "before them; name the fields with prompt, chosen and rejected"
            )
        return _parted(_transcript(chosen), _transcript(rejected))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise UserError(
            f"{where}: 'chosen' is a {type(chosen).__name__} and 'rejected' a "
            f"{type(rejected).__name__}, but both must be texts or lists of messages"
        )
    sides = [
        _messages(where, field, row[field]) if row[field] else []
        for field in ("chosen", "rejected")
    ]
    if all(len(side) == 1 for side in sides):  # the answers alone
        asked = before if isinstance(row.get("prompt"), list) else []
        if not asked and isinstance(row.get("prompt"), str):
            asked = [_user(row["prompt"])]
        sides = [[*asked, *side] for side in sides]
    return _parted(*sides)


def _parted(chosen: Messages, rejected: Messages) -> dict[str, Any]:
    if chosen == rejected:
        raise Unusable("both answers are the same")
    if chosen[:-1] != rejected[:-1] or not chosen or not rejected:
        raise Unusable("the answers part before their last turn")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("the last turn is not the assistant's")
    return _checked_pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def _checked_pair(messages: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    _check_asking(messages)
    if not chosen.strip() or not rejected.strip():
        raise Unusable("an answer is empty")
    if chosen == rejected:
        raise Unusable("both answers are the same")
    return {"messages": messages, "chosen": chosen, "rejected": rejected}


def _check_asking(messages: Messages) -> None:
    if not messages or messages[-1]["role"] == "assistant":
        raise Unusable("no user's turn stands before the answer")
    if not messages[-1]["content"].strip():
        raise Unusable("the user's turn is empty")


def _transcript(text: str) -> Messages:
    """Turns of "Human: ...", "Assistant: ...", with an empty line before each."""
    _, *parts = _SPEAKER.split(text.strip("\n"))
    return [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


# Prompts


def _prompt(source: Source, where: str, row: dict[str, Any]) -> dict[str, Any]:
    verifier = source.verifier if source.verifier is not None else row["verifier"]
    for field in ("messages", "prompt"):
        if isinstance(row.get(field), list):
            messages = _messages(where, field, row[field])
            break
    else:
        if not isinstance(row.get("prompt"), str):
            raise UserError(
                f"{where}: a row to be judged needs 'messages' or 'prompt', but has "
                f"{', '.join(map(repr, row))}; name the field with prompt and answer"
            )
        messages = [_user(row["prompt"])]
    given = row.get("answer", row.get("ground_truth"))
    answer = _answer(where, given)
    if isinstance(row.get("doc"), dict):
        doc = row["doc"]
    else:
        doc = {k: v for k, v in row.items() if k not in ("id", "messages", "verifier", "answer")}
    return _checked_prompt(where, messages, answer, verifier, doc)


def _answer(where: str, given: Any) -> str | list[str]:
    match given:
        case None:
            return ""
        case str():
            return given
        case bool():
            pass
        case int() | float():
            return str(given)
        case list() if given and all(isinstance(each, str) for each in given):
            return given
    raise UserError(
        f"{where}: 'answer' is {str(given)[:60]!r}, but must be a text, a number or a list of texts"
    )


def _checked_prompt(
    where: str, messages: Messages, answer: str | list[str], verifier: str, doc: dict[str, Any]
) -> dict[str, Any]:
    _check_asking(messages)
    try:
        needed, alone = _verifier(verifier)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for field in needed:
        if field not in doc:
            raise UserError(
                f"{where}: verifier {verifier!r} reads {field!r} of a row's 'doc', which has "
                f"{', '.join(map(repr, doc)) or 'nothing'}{did_you_mean(field, doc)}"
            )
    if alone:
        [verdict] = verifiers.verify(verifier, [verifiers.Answer(text="", gold=answer, doc=doc)])
        if verdict.score is None:
            raise UserError(
                f"{where}: verifier {verifier!r} cannot judge by this row: {verdict.error}"
            )
    return {"messages": messages, "answer": answer, "verifier": verifier, "doc": dict(doc)}


@cache
def _verifier(name: str) -> tuple[tuple[str, ...], bool]:
    """(fields of the doc that it needs, whether it judges one answer without other processes)."""
    verifiers.check_name(name)
    module = importlib.import_module(f"evalsuite.verifiers.{name}")
    return getattr(module, "FIELDS", ()), not hasattr(module, "verify_all")


# Messages and templates


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _messages(where: str, field: str, messages: Any) -> Messages:
    """The list of messages in a field; UserError for what is none.

    A message has a role and a content, and no other key holds text: a chat template could
    render such a text, which decontamination does not read.
    """
    if not messages:
        raise UserError(f"{where}: {field!r} is empty; remove the row, or give it a turn")
    for message in messages:
        _check_message(where, field, message)
    return list(messages)


def _check_message(where: str, field: str, message: Any) -> None:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(part), str) for part in ("role", "content")
    ):
        raise UserError(
            f"{where}: each of {field!r} needs a text 'role' and a text 'content', but one is "
            f"{str(message)[:80]!r}"
        )
    for key, value in message.items():
        if key not in ("role", "content") and _holds_text(value):
            raise UserError(
                f"{where}: a message has text in {key!r} ({str(value)[:40]!r}) beside role and "
                "content, where decontamination does not look; remove the field from the file, "
                "or make the turns with prompt and response"
            )


def _holds_text(value: Any) -> bool:
    """Whether a non-empty string stands in a JSON value, however deep."""
    match value:
        case str():
            return value != ""
        case dict():
            return any(map(_holds_text, value.values()))
        case list():
            return any(map(_holds_text, value))
    return False


def fill(template: str, row: Mapping[str, Any], place: str) -> str:
    """`template` with each {field} replaced by the row's value, a text or a number."""

    def value(match: re.Match[str]) -> str:
        field = match.group(1)
        if field not in row:
            raise UserError(f"{place}: no field {field!r}{did_you_mean(field, row)}")
        found = row[field]
        if found is None or isinstance(found, dict | list):
            what = "null" if found is None else f"a {type(found).__name__}"
            raise UserError(
                f"{place}: field {field!r} is {what}, but a template takes texts and numbers"
            )
        return str(found)

    return re.sub(r"\{(\w+)\}", value, template)


def cut(key: str, text: str) -> Iterator[dict[str, Any]]:
    """A text as pieces of about LONGEST characters that end at a blank line; blank texts vanish."""
    if len(text) <= LONGEST:
        if text.strip():
            yield {"id": key, "text": text}
        return
    piece: list[str] = []
    size = number = 0
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        if size + len(paragraph) > LONGEST and piece:
            yield {"id": f"{key}#{number}", "text": "\n".join(piece)}
            piece, size, number = [], 0, number + 1
        if paragraph.strip():
            piece.append(paragraph)
            size += len(paragraph)
    if piece:
        yield {"id": f"{key}#{number}", "text": "\n".join(piece)}
