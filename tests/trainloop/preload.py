"""What a process started by minirun.start has imported and compiled before it begins."""

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.trainloop import minirun


def _warm_up() -> None:
    """Run the mini recipe once, elsewhere: its code is then loaded, its tasks are known."""
    with tempfile.TemporaryDirectory() as folder:
        minirun.finish(minirun.write_recipe(Path(folder)), Path(folder) / "runs")


_warm_up()
