"""The verb that pretrains as a function; `api` has it too.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.settings.paths import folder_of, require_existing

if TYPE_CHECKING:
    from scantling.pretrain.summary import PretrainSummary

log = logging.getLogger(__name__)


def pretrain(
    data: str | Path,
    out: str | Path,
    *,
    overrides: Iterable[str] = (),
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> PretrainSummary:
    """Learn a backbone from a data set's own crops, without using their categories.

    Args:
        data: A data set in any format, one split of it (`FOLDER:SPLIT`), an annotations or split file, or a folder
            of images without labels.
        out: Folder for the crops, the training, its numbers and `backbone.safetensors`; an interrupted pretraining
            there goes on.
        overrides: `KEY.PATH=VALUE` texts for the settings, such as `backbone=resnet18` or `epochs=50`.
        seed: Of all randomness.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: Start over in the folder of an earlier pretraining.

    Raises:
        ScantlingError: The data, a setting, the device or the folder cannot be used.
    """
    require_existing(folder_of(data), "data set")
    from rich.console import Console

    from scantling.pretrain.config import PretrainConfig
    from scantling.pretrain.run import PretrainRun
    from scantling.pretrain.run import pretrain as learn
    from scantling.pretrain.source import read_crops
    from scantling.settings.draft import Draft

    config = Draft.of(PretrainConfig, overrides).check()
    plan = read_crops(data, config, seed=seed)
    console = Console(stderr=True, quiet=not log.isEnabledFor(logging.INFO))
    return learn(
        plan, config, out, run=PretrainRun(seed=seed, device=device, overwrite=overwrite, console=console)
    )
