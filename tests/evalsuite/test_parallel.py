"""One map, three engines: here, processes and a real Ray cluster of two nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parallel_parts as parts
import pytest

from evalsuite import parallel
from evalsuite.errors import UserError
from evalsuite.parallel import each

ENGINES = ("here", "processes", "ray")


@pytest.fixture(scope="module")
def session(ray_cluster: str) -> Iterator[str]:
    """The same address, with Ray connected to it: workers live from test to test."""
    import ray

    ray.init(address=ray_cluster, log_to_driver=False, logging_level="error")
    yield ray_cluster
    ray.shutdown()


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session is open, whichever test ran before."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of `each` that choose where it works."""
    match request.param:
        case "processes":
            return {"workers": 2}
        case "ray":
            return {"ray": request.getfixturevalue("session")}
    return {}


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and not all(map(gone, pids)):
        time.sleep(0.02)
    assert all(map(gone, pids))


def test_every_task_gives_its_result_under_its_number(tmp_path, engine):
    shared = parts.Heavy(tmp_path, 100)
    found = list(each(parts.add, [1, 2, 3, 4, 5], shared=shared, **engine))
    assert sorted((number, value) for number, (value, _) in found) == [
        (i, 101 + i) for i in range(5)
    ]
    pids = {pid for _, (_, pid) in found}
    if not engine:
        assert [number for number, _ in found] == list(range(5)) and pids == {os.getpid()}
        return
    assert os.getpid() not in pids
    # Each worker has read what is shared once, however many tasks it had.
    reads = Counter(map(int, (tmp_path / "read").read_text().split()))
    assert {pid: reads[pid] for pid in pids} == dict.fromkeys(pids, 1)


def test_no_task_needs_no_worker():
    assert list(each(parts.add, [], workers=3)) == []
    assert list(each(parts.add, [], ray="127.0.0.1:1")) == []


def test_fewer_workers_than_one_is_an_error():
    with pytest.raises(UserError, match="workers is 0"):
        each(parts.add, [1], workers=0)


def test_a_user_error_arrives_as_it_was_raised(engine):
    with pytest.raises(UserError) as caught:
        list(each(parts.fail, [0, 1, 2], shared="user", **engine))
    assert str(caught.value) == "data.jsonl:7: no text; name the field"
    assert type(caught.value) is UserError


def test_any_other_exception_arrives_with_the_workers_traceback(engine):
    with pytest.raises(KeyError) as caught:
        list(each(parts.fail, [0, 1], shared="bug", **engine))
    if engine:
        [note] = caught.value.__notes__
        assert "parallel_parts.py" in note and 'raise KeyError("missing")' in note


@pytest.mark.parametrize(
    ("kind", "words"),
    [("unreadable", "NeedsTwo: a and b"), ("unsendable", "local object")],
)
def test_what_cannot_be_sent_back_is_an_error_with_its_traceback(kind, words):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        list(each(parts.fail, [0, 1], shared=kind, workers=2))
    assert words in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize(
    ("kind", "how"), [("killed", "killed by SIGKILL"), ("left", "ended with exit code 7")]
)
def test_a_worker_that_dies_is_an_error_that_names_its_task(kind, how):
    with pytest.raises(UserError, match=rf"task 2 of 3 \(1\): its process .*{how}"):
        list(each(parts.fail, [0, 1, 2], shared=kind, workers=2))


def test_a_ray_worker_that_dies_is_an_error_that_names_its_task(session):
    with pytest.raises(UserError, match=r"task 2 of 3 \(1\): Ray lost it \(.*died"):
        list(each(parts.fail, [0, 1, 2], shared="killed", ray=session))


def test_closing_the_iterator_stops_the_workers(tmp_path, engine):
    if not engine:
        return
    with contextlib.closing(
        each(parts.one_quick_rest_endless, [0, 1, 2], shared=tmp_path, **engine)
    ) as found:
        assert next(found) == (0, 0)
    wait_until_gone([int(path.stem) for path in tmp_path.glob("*.pid")])
    # Ray may have started a cancelled task just then: it must not hold a CPU of later tests.
    (tmp_path / "stop").touch()


def test_an_exception_in_the_loop_stops_the_workers(tmp_path):
    def stop_at_the_first() -> None:
        for found in each(parts.one_quick_rest_endless, [0, 1, 2], shared=tmp_path, workers=2):
            raise ZeroDivisionError(found)

    with pytest.raises(ZeroDivisionError):
        stop_at_the_first()
    wait_until_gone([int(path.stem) for path in tmp_path.glob("*.pid")])


# A process started in the background of a shell inherits that SIGINT is ignored.
SCRIPT = """
import signal
import sys
import parallel_parts as parts
from pathlib import Path
from evalsuite.parallel import each

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = each(parts.one_quick_rest_endless, [0, 1, 2], shared=Path(sys.argv[1]), workers=2)
    print(next(found), flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("signal.raise_signal(signal.SIGINT)", -2),
    ],
)
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path, repository, end, code):
    (tmp_path / "script.py").write_text(SCRIPT.format(end=end))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{repository}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("(0, 0)\n", code)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert pids
    wait_until_gone(pids)


def test_what_workers_report_is_heard(engine):
    heard: list[tuple[str, float, float]] = []
    said = each(parts.tell, [0, 1], progress=lambda *said: heard.append(said), **engine)
    assert sorted(said) == [(0, 0), (1, 1)]
    if "ray" in engine:
        assert heard == []
        return
    last = {label: (done, total) for label, done, total in heard}
    assert last == {"task 0": (1000, 1000), "task 1": (1000, 1000)}
    assert len(heard) == 2000 if not engine else len(heard) < 200
    parallel.report("outside", 1, 1)
    assert len(heard) == 2000 or engine


def test_workers_have_the_thread_counts_of_their_parent(engine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert list(each(parts.threads, [0], **engine)) == [(0, "5")]


def test_tasks_run_on_both_nodes_of_a_cluster(tmp_path, session):
    found = dict(each(parts.where, [0, 1], shared=tmp_path, ray=session))
    assert len(set(found.values())) == 2


CONNECTS = """
import os, sys
import parallel_parts as parts
from evalsuite.parallel import each

before = dict(os.environ)
found = sorted(each(parts.shout, [0, 1], ray=sys.argv[1]))
assert found == [(0, 0), (1, 1)] and dict(os.environ) == before
import ray
assert not ray.is_initialized()
"""


def test_ray_is_connected_quietly_and_disconnected_at_the_end(ray_cluster, repository):
    done = subprocess.run(
        [sys.executable, "-c", CONNECTS, ray_cluster],
        env=os.environ | {"PYTHONPATH": f"{repository}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_an_open_session_of_ray_is_used_and_left_open(session):
    import ray

    assert list(each(parts.threads, [0], ray="auto"))
    assert ray.is_initialized()


def test_a_module_that_the_nodes_lack_is_named(tmp_path, session, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(shared, task):\n    return task\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(UserError, match=r"cannot import 'only_here': install .* every node"):
        list(each(only_here.work, [1], ray=session))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("somewhere", "host:port"),
        ("127.0.0.1:99999999", "refused"),
    ],
)
@pytest.mark.usefixtures("unconnected")
def test_a_cluster_that_cannot_be_reached_is_one_error(address, why):
    with pytest.raises(
        UserError, match=rf"Ray cluster {address}: cannot connect .*{why}"
    ) as caught:
        list(each(parts.threads, [1], ray=address))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unconnected")
def test_a_port_that_is_no_ray_cluster_is_an_error_too(monkeypatch):
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="has not answered as Ray does in 3 s"):
            list(each(parts.threads, [1], ray=address))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'assay-lm\[ray\]'"):
        list(each(parts.threads, [1], ray="auto"))
