"""Where the weights lie that `init` names: in a file, the folder of a run, an import or a pretraining, on the network.

    runs/parts                          the run's detector; of several members the one with the wanted model
    runs/parts/members/NAME, imported   best.safetensors, weights.safetensors or backbone.safetensors in the folder
    FILE                                as it is
    https://HOST/NAME                   fetched once into PyTorch's hub folder; a hash in the name is verified
    hf-hub:OWNER/NAME, with @FILE       `model.safetensors` unless named, fetched once into Hugging Face's cache

Nothing is fetched unless a URL or a hub id says so.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from scantling.data.io import sha256_of
from scantling.errors import CheckpointError
from scantling.models.weights.container import read_container
from scantling.models.weights.foreign import describe_foreign

log = logging.getLogger(__name__)

HUB = "hf-hub:"
HUB_FILE = "model.safetensors"
IN_FOLDER = ("best.safetensors", "weights.safetensors", "backbone.safetensors")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def is_remote(init: str) -> bool:
    """Whether an `init` names something to be fetched."""
    return init.startswith((HUB, "https://", "http://"))


def find_weights(init: str, model: str | None = None) -> Path:
    """The file that an `init` stands for.

    Args:
        init: A path, a URL or a hub id.
        model: Name of the model to be filled: of several members of a run the one with this model is taken.

    Raises:
        CheckpointError: The folder holds no weights or several, or what is named cannot be fetched.
    """
    if init.startswith(HUB):
        name, _, file = init.removeprefix(HUB).partition("@")
        return fetch_from_hub(name, file or HUB_FILE)
    if is_remote(init):
        return fetch_url(init)
    path = Path(init)
    return _in_folder(path, model) if path.is_dir() else path


def sha256_prefix(name: str) -> str | None:
    """The beginning of its SHA-256 that a file's name tells, as PyTorch's hub has it."""
    match = _HASH.search(name)
    return match[1] if match else None


def hub_place(name: str) -> Path:
    """Where a fetched file of this name lies, or may be put by hand."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def fetch_url(url: str, place: Path | None = None) -> Path:
    """The local copy of a file on the network, fetched where there is none.

    Args:
        url: Where it is.
        place: Where the copy lies; None for PyTorch's hub folder, under the file's own name.

    Raises:
        CheckpointError: It cannot be fetched, or its hash is not the one in its name.
    """
    place = place or hub_place(url.rsplit("/", 1)[-1].partition("?")[0])
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s", url)
        try:
            torch.hub.download_url_to_file(url, str(place), sha256_prefix(place.name), progress=False)
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: no URL at all
            raise CheckpointError(
                f"{url} cannot be fetched: {error}", hint=f"Put the file at {place}, or name a local one."
            ) from error
    require_hash(place)
    return place


def require_hash(path: Path) -> None:
    """Compare a file with the hash in its name, if there is one.

    Raises:
        CheckpointError: It is another file.
    """
    prefix = sha256_prefix(path.name)
    found = sha256_of(path) if prefix else ""
    if prefix and not found.startswith(prefix):
        raise CheckpointError(
            f"{path}: its SHA-256 begins with {found[: len(prefix)]}, expected {prefix}",
            hint="It is damaged or another file: remove it, and fetch it anew.",
        )


def fetch_from_hub(name: str, file: str) -> Path:
    """The local copy of a file of a Hugging Face repository, fetched where there is none.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - takes long, and only this needs it

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{HUB}{name}@{file} cannot be fetched: {reason}",
            hint=f"Fetch https://huggingface.co/{name}/resolve/main/{file} elsewhere, and name the file.",
        ) from error


def cached_from_hub(name: str, file: str) -> Path | None:
    """The copy of a file of a Hugging Face repository in its cache, if there is one; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - as above

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _in_folder(folder: Path, model: str | None) -> Path:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    name = IN_FOLDER[0]
    found = [*sorted(folder.glob(f"members/*/{name}")), *sorted(folder.glob(f"members/*/fold-*/{name}"))]
    if len(found) > 1:
        alike = [file for file in found if _model_name(file) == model]
        found = alike if len(alike) == 1 else found
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(str(file.parent) for file in found[:6])
        raise CheckpointError(
            f"{folder} holds the weights of {len(found)} trainings", hint=f"Name one of {shown}."
        )
    if (folder / "recipe.yaml").is_file():
        raise CheckpointError(
            f"{folder} holds no weights", hint="Finish its training with `scantling run` first."
        )
    raise CheckpointError(
        f"{folder} is a folder and holds no weights: no {', '.join(IN_FOLDER)}, and no run's members",
        hint="Name the file itself.",
    )


def _model_name(file: Path) -> object:
    record = None if describe_foreign(file) else read_container(file).record
    model = (record or {}).get("model")
    return model.get("name") if isinstance(model, dict) else None
