"""Makes `tiny_training` importable and keeps torch to one thread, so that runs compare bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
