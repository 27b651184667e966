"""The rooms' order, what stays unloaded until it is needed, and what no source may call."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import assay

REPOSITORY = Path(__file__).parent.parent
ROOMS = ("evalsuite", "decon", "trainloop", "leaderboards")
SOURCES = sorted(
    [f for room in ROOMS for f in (REPOSITORY / room).rglob("*.py")] + [REPOSITORY / "assay.py"]
)
HEAVY = ("torch", "transformers", "lm_eval", "datasets", "accelerate", "duckdb", "streamlit")


def imports(tree: ast.AST) -> set[str]:
    """Full names of all modules that a source imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and node.args
        ):
            found.add(ast.unparse(node.args[0]).strip("f'\""))
    return found


def wrong_way(room: str, tree: ast.AST) -> set[str]:
    """Imports of rooms that come after this one, or of the roof."""
    later = {*ROOMS[ROOMS.index(room) + 1 :], "assay"}
    return {name for name in imports(tree) if name.partition(".")[0] in later}


def forbidden(tree: ast.AST) -> set[str]:
    """Calls that run code from data, or a shell."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "compile", "torch.load", "yaml.load", "os.system", "os.popen"):
            found.add(name)
        if name in ("np.load", "numpy.load") and any(
            k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords
        ):
            found.add(name)
        for keyword in node.keywords:
            if keyword.arg in ("shell", "trust_remote_code") and (
                ast.unparse(keyword.value) != "False"
            ):
                found.add(f"{keyword.arg}={ast.unparse(keyword.value)}")
    unsafe = {"pickle", "marshal", "shelve", "dill", "joblib"}
    return found | {name for name in imports(tree) if name.partition(".")[0] in unsafe}


def parsed(file: Path) -> ast.AST:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_after_it(room):
    files = [f for f in SOURCES if f.is_relative_to(REPOSITORY / room)]
    assert len(files) > 5
    assert {str(f): names for f in files if (names := wrong_way(room, parsed(f)))} == {}


def test_only_the_harness_imports_lm_eval():
    found = [
        f.relative_to(REPOSITORY).as_posix()
        for f in SOURCES
        if any(name.partition(".")[0] == "lm_eval" for name in imports(parsed(f)))
    ]
    assert found == ["evalsuite/harness.py"]


def test_the_board_never_loads_torch():
    rooms = {
        f: {n.partition(".")[0] for n in imports(parsed(f))}
        for f in SOURCES
        if f.is_relative_to(REPOSITORY / "leaderboards")
    }
    banned = {"torch", "transformers", "accelerate", "decon", "trainloop"}
    assert {f: names & banned for f, names in rooms.items() if names & banned} == {}


def test_no_source_runs_code_from_data_or_a_shell():
    assert {str(f): found for f in SOURCES if (found := forbidden(parsed(f)))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "yaml.load(text)",
        "subprocess.run(words, shell=True)",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=trusted)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_the_search_for_unsafe_calls_finds_one(source):
    assert forbidden(ast.parse(source))


def test_the_search_for_wrong_imports_finds_them_inside_functions_too():
    inside = "def f():\n    from trainloop.run import prepare\n"
    assert wrong_way("decon", ast.parse(inside)) == {"trainloop.run", "trainloop.run.prepare"}
    assert wrong_way("leaderboards", ast.parse(inside)) == set()


HELP = """
import contextlib, io, sys
import click
import assay

heavy = set(sys.argv[1].split(","))
seen = []

def visit(words, command):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            assay.main([*words, "--help"])
        except SystemExit as end:
            assert not end.code, (words, end.code)
    assert "Usage: assay" in said.getvalue(), words
    loaded = sorted(heavy & set(sys.modules))
    assert not loaded, f"assay {' '.join(words)} --help loads {loaded}"
    seen.append(" ".join(words))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            visit([*words, name], command.get_command(context, name))

visit([], assay.cli)
print("\\n".join(seen))
"""


def test_help_of_every_command_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HELP, ",".join(HEAVY)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    seen = done.stdout.splitlines()
    assert set(assay.COMMANDS) <= set(seen)
    assert {"eval run", "decon clean", "board serve", "data micro"} <= set(seen)
