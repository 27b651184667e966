"""Code: a tiny language of assignments and prints, and its interpreter.

    "Q: what prints va = 3 ; tu = 5 ; va = va + 2 ; print va\\nA: 3+2=5 prints 5"
    "Q: va = 4 ; ? ; print va gives 9 so fill the gap for va\\nA: va = 9"
    run("va = 3 ; tu = va + 2 ; print tu")  ->  "5"

A program is statements between semicolons: `NAME = TERM (+|- TERM)*` or `print NAME`, a TERM
being a name or a whole number without sign. Nothing else exists: no loops, no calls, and no
`exec` anywhere, so a model's answer can be run safely. Evaluation programs use variable names
that training never uses. Dev asks for the output and for a missing line of short programs, unseen
for the output of longer ones in another wording.
"""

from __future__ import annotations

import random
import re

from evalsuite.microworld.world import Exercise, Item, Split, asker, digest, held_out, name, pick

MAX_STATEMENTS = 64
_NAME = re.compile(r"[a-z]{1,12}")
_NUMBER = re.compile(r"[0-9]{1,9}")
GAP = "?"


class ProgramError(ValueError):
    """The program is not one of the language, or reads a variable never set."""


def run(program: str) -> str:
    """What the program prints, lines joined by one space; raises ProgramError."""
    statements = program.split(";")
    if len(statements) > MAX_STATEMENTS:
        raise ProgramError(f"{len(statements)} statements; {MAX_STATEMENTS} are allowed")
    variables: dict[str, int] = {}
    printed = []
    for statement in statements:
        tokens = statement.split()
        if len(tokens) == 2 and tokens[0] == "print":
            printed.append(str(_value(tokens[1], variables)))
        elif len(tokens) >= 3 and tokens[1] == "=" and _is_name(tokens[0]):
            variables[tokens[0]] = _evaluate(tokens[2:], variables)
        else:
            raise ProgramError(f"not a statement: {statement.strip()!r}")
    return " ".join(printed)


def fill(program: str, answer: str) -> str:
    """The program with `answer` in place of its gap."""
    return program.replace(GAP, answer)


def fills_the_gap(program: str, answer: str, output: str) -> bool:
    """Is `answer` one statement that makes the program print `output`?"""
    if ";" in answer or "print" in answer:
        return False
    try:
        return run(fill(program, answer.strip())) == output
    except ProgramError:
        return False


def _is_name(token: str) -> bool:
    return token != "print" and _NAME.fullmatch(token) is not None


def _value(token: str, variables: dict[str, int]) -> int:
    if _NUMBER.fullmatch(token):
        return int(token)
    if _is_name(token) and token in variables:
        return variables[token]
    raise ProgramError(f"{token!r} has no value")


def _evaluate(tokens: list[str], variables: dict[str, int]) -> int:
    if len(tokens) % 2 == 0:
        raise ProgramError(f"not an expression: {' '.join(tokens)!r}")
    total = _value(tokens[0], variables)
    for operator, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        if operator not in ("+", "-"):
            raise ProgramError(f"{operator!r} is not + or -")
        total += _value(operand, variables) * (1 if operator == "+" else -1)
    return total


Names = tuple[str, str]


def short_program(rng: random.Random, names: Names) -> str:
    """One variable changed twice, or two variables of which one is changed once; one is printed."""
    a, b = names
    x, y, z = (1 + int(rng.random() * 9) for _ in range(3))
    if rng.random() < 0.5:
        step, value = _step(rng, x, y)
        return f"{a} = {x} ; {a} = {a} {step} ; {a} = {a} {_step(rng, value, z)[0]} ; print {a}"
    changed, other, old = (a, b, x) if rng.random() < 0.5 else (b, a, y)
    shown = changed if rng.random() < 0.7 else other
    step, _ = _step(rng, old, z)
    return f"{a} = {x} ; {b} = {y} ; {changed} = {changed} {step} ; print {shown}"


def _step(rng: random.Random, value: int, by: int) -> tuple[str, int]:
    """("+ 3" or "- 3", the new value): never below zero."""
    return (f"+ {by}", value + by) if value < by or rng.random() < 0.5 else (f"- {by}", value - by)


def long_program(rng: random.Random, names: Names) -> str:
    """As `short_program`, then the other variable is set from the changed one."""
    a, b = names
    x, y, z = (1 + int(rng.random() * 9) for _ in range(3))
    return f"{a} = {x} ; {b} = {y} ; {a} = {a} + {z} ; {b} = {a} ; print {b}"


def gapped(rng: random.Random, names: Names) -> tuple[str, str, str]:
    """(program with a gap, the missing line, what it prints)."""
    a, _ = names
    x, wanted = (1 + int(rng.random() * 12) for _ in range(2))
    return f"{a} = {x} ; {GAP} ; print {a}", f"{a} = {wanted}", str(wanted)


def traced(program: str) -> str:
    """The right answer to what a generated program prints, the sums behind it restated."""
    values: dict[str, int] = {}
    sums: dict[str, list[str]] = {}
    *statements, show = program.split(" ; ")
    for statement in statements:
        target, _, first, *rest = statement.split()
        told = list(sums.get(first, ()))
        before, value = _value(first, values), _evaluate([first, *rest], values)
        if rest:
            told.append(f"{before}{rest[0]}{rest[1]}={value}")
        values[target], sums[target] = value, told
    shown = show.split()[1]
    return " ".join([*sums[shown], f"prints {values[shown]}"])


def output_question(program: str, split: Split) -> str:
    """Ask what a program prints."""
    return f"what prints {program}" if split == "dev" else f"run {program} and tell the output"


def gap_question(program: str, output: str) -> str:
    """Ask for a missing line."""
    variable = program.split()[0]
    return f"{program} gives {output} so fill the gap for {variable}"


def _names(rng: random.Random) -> Names:
    while True:
        a, b = name(rng).lower(), name(rng).lower()
        if a != b:
            return a, b


def _numbers(program: str) -> tuple[str, ...]:
    return tuple(token for token in program.split() if not token.isalpha())


def _gap_is_held_out(program: str, line: str) -> bool:
    return digest("gap", program.split()[2], line.split()[2]) % 4 == 0


def _training(rng: random.Random) -> tuple[str, str]:
    roll = rng.random()
    while True:
        names = _names(rng)
        if roll < 0.35:
            program, line, output = gapped(rng, names)
            asked, answer = gap_question(program, output), line
            belongs = "dev" if _gap_is_held_out(program, line) else None
        else:
            program = short_program(rng, names) if roll < 0.85 else long_program(rng, names)
            asked, answer = (
                output_question(program, "unseen" if roll > 0.8 else "dev"),
                traced(program),
            )
            belongs = held_out("output", *_numbers(program))
        if belongs is None:
            return asked, answer


def text(rng: random.Random) -> str:
    """A question about a program with its answer."""
    asked, answer = _training(rng)
    return f"Q: {asked}\nA: {answer}\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """(question, answer)."""
    return _training(rng)


def exercise(rng: random.Random) -> Exercise:
    """A program whose output or missing line is asked; wrong is off by one or two in the end."""
    asked, answer = _training(rng)
    value = int(answer.split()[-1])
    off = max(0, value + pick(rng, (-2, -1, 1, 2)))
    off = off if off != value else value + 1
    told = answer.rsplit(str(value), 1)[0]
    if GAP in asked.split():
        program, _, output = asked.partition(" so fill")[0].rpartition(" gives ")
        fields = {"program": program, "output": output}
        return Exercise(
            question=asked, answer=answer, target=answer, wrong=f"{told}{off}", fields=fields
        )
    program = asked.removeprefix("what prints ").removeprefix("run ")
    told = re.sub(rf"={value} prints $", f"={off} prints ", told)
    return Exercise(
        question=asked,
        answer=answer,
        target=str(value),
        wrong=f"{told}{off}",
        fields={"program": program.removesuffix(" and tell the output")},
    )


def items(split: Split) -> list[Item]:
    """60 programs whose output is asked."""
    rng = random.Random(f"programs {split}")
    make = short_program if split == "dev" else long_program
    found: dict[tuple[str, ...], Item] = {}
    while len(found) < 60:
        index = len(found)
        pair = asker(split, index).lower(), asker(split, index + 37).lower()
        program = make(rng, pair)
        if held_out("output", *_numbers(program)) != split or _numbers(program) in found:
            continue
        output = run(program)
        found[_numbers(program)] = Item(
            question=output_question(program, split),
            answer=traced(program),
            target=output,
            rephrased=_retold(program),
            fields={"program": program},
        )
    return list(found.values())


def gap_items(split: Split) -> list[Item]:
    """Up to 40 programs with a missing line; only dev has such."""
    if split != "dev":
        return []
    rng = random.Random("gaps dev")
    found: dict[tuple[str, str], Item] = {}
    for _ in range(4_000):
        variable = asker(split, len(found)).lower()
        program, line, output = gapped(rng, (variable, variable))
        key = program.split()[2], line.split()[2]
        if not _gap_is_held_out(program, line) or key in found or len(found) == 40:
            continue
        found[key] = Item(
            question=gap_question(program, output),
            answer=line,
            target=line,
            rephrased=f"{variable} starts as {key[0]} . Which change turns it into {output} ?",
            fields={"program": program, "output": output},
        )
    return list(found.values())


def _retold(program: str) -> str:
    told = program.replace(" = ", " becomes ").replace(" ; ", " , then ")
    return f"Say what appears at last if {told.replace('print', 'show')}"
