"""Lets the tests of this room import its helper modules, and builds the runs folder they read."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder nobody may change."""
    import runfolder

    return runfolder.build(tmp_path_factory.mktemp("built") / "runs")


@pytest.fixture
def runs(built: Path, tmp_path: Path) -> Path:
    """A copy of the runs folder to change at will; no board in it yet."""
    return Path(shutil.copytree(built, tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _main_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest leaves its page as __main__, which a later test's spawned process would run."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
