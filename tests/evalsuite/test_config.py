"""From YAML to a dataclass: every mistake is named with its file, line, value and way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalsuite import config
from evalsuite.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"part {self.name!r}: size is {self.size}, but must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    parts: list[Part]
    kind: Literal["small", "large"] = "small"
    weights: dict[str, float] = field(default_factory=dict)
    place: Path | None = None
    on: bool = False


def read(text: str) -> Whole:
    return config.loads(text, Whole, place="w.yaml")


def test_a_file_becomes_the_dataclass_it_describes():
    got = read("parts: [{name: a, size: 2_000}, {name: b, size: 2e3}]\nweights: {x: 1, y: .5}\n")
    assert got == Whole(
        parts=[Part(name="a", size=2000), Part(name="b", size=2000)], weights={"x": 1.0, "y": 0.5}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts:\n- {name: a}\nknid: small\n", "w.yaml:3: unknown key 'knid' (value 'small')"),
        ("parts:\n- {name: a}\nknid: small\n", "did you mean 'kind'?"),
        ("parts:\n- name: a\n  size: 0\n", "w.yaml:2: part 'a': size is 0"),
        ("parts:\n- name: a\n  size: two\n", "w.yaml:3: 'two' is not a whole number"),
        ("parts:\n- name: a\n  size: 1.5\n", "w.yaml:3: '1.5' is not a whole number"),
        ("parts:\n- size: 1\n", "w.yaml:2: this part lacks 'name'"),
        ("kind: small\n", "w.yaml:1: this whole lacks 'parts'"),
        ("parts: 3\n", "w.yaml:1: '3' stands where a list is needed"),
        ("parts: []\nkind: medium\n", "w.yaml:2: 'medium' is not allowed here"),
        ("parts: []\non: maybe\n", "w.yaml:2: 'maybe' is not true or false"),
        ("parts: []\nweights: {a: .nan}\n", "w.yaml:2: '.nan' is not a number"),
        ("parts: []\nweights: {a: }\n", "w.yaml:2: '' stands where a number is needed"),
        ("parts: []\nparts: []\n", "w.yaml:2: key 'parts' stands twice"),
        ("parts: [\n", "not valid YAML"),
        ("", "w.yaml: the file is empty"),
        ("- 1\n", "w.yaml:1: a list of 1 stands where keys and values are needed"),
    ],
)
def test_a_mistake_is_one_line_with_place_and_value(text, message):
    with pytest.raises(UserError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tag_that_would_run_code_runs_nothing():
    with pytest.raises(UserError):
        read("parts: !!python/object/apply:os.system ['touch hacked']\n")
    assert not Path("hacked").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        config.load(tmp_path / "gone.yaml", Whole)


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_as_itself(number):
    assert read(f"parts: []\nweights: {{a: {number!r}}}\n").weights == {"a": number}


@given(number=st.integers(-(10**18), 10**18))
def test_every_whole_number_is_read_exactly(number):
    text = f"parts:\n- {{name: a, size: {number}}}\n"
    if number < 1:
        with pytest.raises(UserError, match="must be 1 or more"):
            read(text)
    else:
        assert read(text).parts[0].size == number
