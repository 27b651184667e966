"""The one way from YAML to a frozen dataclass, with line numbers in every complaint.

    stage:                load(path, Recipe) ->
      tokns: 4000         recipe.yaml:2: unknown key 'tokns' (value '4000'); did you mean 'tokens'?

Types come from the dataclass' annotations: str, int, float, bool, Path, Literal, `X | None`,
lists, tuples, dicts, nested dataclasses and unions of them. Numbers may be written 2_000_000
or 2e6. Duplicate and unknown keys are errors. A dataclass checks itself in `__post_init__`;
its UserError gets the file and line in front. Loading runs no code from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from evalsuite.errors import UserError, did_you_mean

T = TypeVar("T")


def load(path: Path, into: type[T]) -> T:
    """Read the YAML file `path` as one `into`; UserError names file, line, value and way out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    return loads(text, into, place=str(path))


def loads(text: str, into: type[T], *, place: str) -> T:
    """`load` for text already in hand; `place` stands where the file's name would."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else place
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    if node is None:
        raise UserError(f"{place}: the file is empty; it must hold a {_name(into)}")
    return _convert(node, into, place)


def _convert(node: yaml.Node, into: Any, place: str) -> Any:
    where = f"{place}:{node.start_mark.line + 1}"
    origin = typing.get_origin(into)
    if into is Any:
        return _plain(node, place)
    if origin in (Union, types.UnionType):
        return _union(node, typing.get_args(into), place)
    if origin is Literal:
        value = _scalar(node, str, place) if isinstance(node, yaml.ScalarNode) else None
        allowed = typing.get_args(into)
        for option in allowed:
            if str(option) == value:
                return option
        hint = did_you_mean(str(value), map(str, allowed))
        raise UserError(f"{where}: {_show(node)} is not allowed here{hint}")
    if dataclasses.is_dataclass(into):
        return _record(node, into, place)
    if origin is dict:
        key_type, value_type = typing.get_args(into)
        return {
            _convert(key, key_type, place): _convert(value, value_type, place)
            for key, value in _pairs(node, place)
        }
    if origin in (list, tuple):
        if not isinstance(node, yaml.SequenceNode):
            raise UserError(f"{where}: {_show(node)} stands where a list is needed")
        inner = typing.get_args(into)[0]
        return origin(_convert(item, inner, place) for item in node.value)
    if into in (str, int, float, bool, Path):
        return _scalar(node, into, place)
    raise TypeError(f"config cannot read a {into!r}")


def _record(node: yaml.Node, into: Any, place: str) -> Any:
    where = f"{place}:{node.start_mark.line + 1}"
    hints = typing.get_type_hints(into)
    fields = {f.name: f for f in dataclasses.fields(into) if f.init}
    values: dict[str, Any] = {}
    for key, value in _pairs(node, place):
        name = str(key.value)
        if name not in fields:
            raise UserError(
                f"{place}:{key.start_mark.line + 1}: unknown key {name!r} (value {_show(value)})"
                + did_you_mean(name, fields)
            )
        values[name] = _convert(value, hints[name], place)
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: this {_name(into)} lacks {', '.join(map(repr, missing))}")
    try:
        return into(**values)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(f"{place}:") else f"{where}: {text}") from None


def _union(node: yaml.Node, options: tuple[Any, ...], place: str) -> Any:
    if type(None) in options and _is_null(node):
        return None
    real = [option for option in options if option is not type(None)]
    if len(real) == 1:
        return _convert(node, real[0], place)
    # A mapping picks the dataclass that knows its first key; a scalar the first type it fits.
    if isinstance(node, yaml.MappingNode):
        records = [option for option in real if dataclasses.is_dataclass(option)]
        keys = {str(key.value) for key, _ in node.value}
        records.sort(key=lambda r: -len(keys & {f.name for f in dataclasses.fields(r)}))
        return _convert(node, records[0] if records else real[0], place)
    problem: UserError | None = None
    for option in real:
        try:
            return _convert(node, option, place)
        except UserError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _pairs(node: yaml.Node, place: str) -> list[tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            f"{place}:{node.start_mark.line + 1}: {_show(node)} stands where keys and values "
            "are needed"
        )
    seen: set[str] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise UserError(f"{place}:{key.start_mark.line + 1}: key {key.value!r} stands twice")
        seen.add(str(key.value))
    return list(node.value)


def _scalar(node: yaml.Node, into: type, place: str) -> Any:
    where = f"{place}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode) or (_is_null(node) and into is not str):
        raise UserError(f"{where}: {_show(node)} stands where a {_name(into)} is needed")
    text = str(node.value)
    if into in (str, Path):
        return into(text)
    if into is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{where}: {text!r} is not true or false")
    try:
        number = float(text.replace("_", ""))
        if into is float:
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
            return number
        if number != int(number):
            raise ValueError
        return int(number) if "e" in text.lower() or "." in text else int(text.replace("_", ""))
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {text!r} is not a {_name(into)}") from None


def _plain(node: yaml.Node, place: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value, place) for key, value in _pairs(node, place)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, place) for item in node.value]
    value = yaml.safe_load(yaml.serialize(node))
    if isinstance(value, str) and getattr(node, "style", None) is None:
        with contextlib.suppress(ValueError):
            return float(value)  # 1e-5 is a number everywhere but in YAML 1.1
    return value


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _show(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    kind = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    return f"{kind} of {len(node.value)}"


def _name(into: Any) -> str:
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return words.get(into, getattr(into, "__name__", str(into)).lower())
