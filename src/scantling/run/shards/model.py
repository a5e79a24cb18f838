"""The detector, or run, that predicts shards: loaded once in each process, and told apart by its files' hashes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scantling.data.io import sha256_of
from scantling.errors import UsageError
from scantling.predict.loaded import ImagePredictor, load_detector
from scantling.run.predictor import files_of_run, load_run


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """What predicts.

    Attributes:
        run: Run folder; or
        checkpoint: checkpoint file.
        settings: `KEY=VALUE` texts that replace settings of prediction.
    """

    run: Path | None = None
    checkpoint: Path | None = None
    settings: tuple[str, ...] = ()

    @property
    def paths(self) -> dict[str, Path]:
        """The run folder or the checkpoint file, by its option."""
        given = {"run": self.run, "checkpoint": self.checkpoint}
        return {name: path for name, path in given.items() if path is not None}

    def wherever(self) -> ChosenModel:
        """The same, for a process that works in another folder: by absolute paths."""
        paths = {name: path.absolute() for name, path in self.paths.items()}
        return ChosenModel(run=paths.get("run"), checkpoint=paths.get("checkpoint"), settings=self.settings)

    def load(self, device: str) -> ImagePredictor:
        """Ready to look at images.

        Raises:
            CheckpointError: Weights are missing or damaged.
            ConfigError: A setting is wrong.
        """
        if self.checkpoint is not None:
            return load_detector(self.checkpoint, self.settings, device=device)
        return load_run(self._run, self.settings, device=device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the predictions: SHA-256 of every file by its name, and the settings.

        Raises:
            UsageError: A file is missing.
        """
        if self.checkpoint is not None:
            files = {"checkpoint": self.checkpoint}
        else:
            files = {name: self._run / name for name in files_of_run(self._run)}
        for path in files.values():
            if not path.is_file():
                raise UsageError(
                    f"{path}: there is no such file", hint="Give the run, or the checkpoint, anew."
                )
        return {
            "files": {name: sha256_of(path) for name, path in files.items()},
            "settings": list(self.settings),
        }

    @property
    def _run(self) -> Path:
        if self.run is None:
            raise UsageError("give either --run DIR or --checkpoint FILE")
        return self.run
