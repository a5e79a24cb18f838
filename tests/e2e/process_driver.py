"""The command line with a sampling that does not draw.

Leaves its process id in the file `pid-RANK`, and its exit code in `code-RANK`.

Anchors and RoIs are drawn from a random state of each process and step, so two processes draw others than one does.
Here the first ones are taken, which makes the losses of the same images comparable.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from torch import Tensor

from scantling.cli import main
from scantling.models import assign


def take_first(positions: Tensor, num: int) -> Tensor:
    time.sleep(float(os.environ.get("SECONDS_PER_DRAW", "0")))
    return positions[:num]


def drive() -> None:
    """The command of this process, whose arguments are in `sys.argv`."""
    assign._draw = take_first
    rank = os.environ.get("RANK", "0")
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        Path(f"code-{rank}").write_text(str(code))
    sys.exit(0)


if __name__ == "__main__":
    drive()
