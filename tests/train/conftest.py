"""Makes `tiny_training` importable, keeps torch to one thread so that runs compare bit for bit, runs child_driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that equal runs are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class ChildRuns:
    """Where the child processes trained, and what each job of child_driver.py reports."""

    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="session")
def child_runs(tmp_path_factory) -> ChildRuns:
    """All jobs of child_driver.py, run once."""
    folder = tmp_path_factory.mktemp("children")
    done = subprocess.run(
        [sys.executable, HERE / "child_driver.py", folder],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return ChildRuns(folder, json.loads(done.stdout))
