"""Painted crops, and a network to learn them that is as small as timm has one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from painted import TINY, painted_plan, painted_store, write_painted

from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.crop_store import CropStore
from scantling.pretrain.run import PretrainRun


@pytest.fixture(scope="session")
def painted(tmp_path_factory) -> Path:
    """A data set of 3 pictures with 48 objects of 3 categories."""
    return write_painted(tmp_path_factory.mktemp("painted"), images=3, categories=3)


@pytest.fixture(scope="session")
def plan(painted):
    return painted_plan(painted)


@pytest.fixture(scope="session")
def store(painted, tmp_path_factory) -> CropStore:
    return painted_store(painted, tmp_path_factory.mktemp("store"))


@pytest.fixture
def config() -> PretrainConfig:
    return PretrainConfig(**TINY, lr=0.03, momentum=0.9)


@pytest.fixture
def quiet() -> PretrainRun:
    return PretrainRun(device="cpu", console=Console(quiet=True))
