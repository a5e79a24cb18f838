"""Whether scantling can work on this machine: versions, GPU, disk, memory, and what to install.

Nothing heavy is imported here. The libraries are imported by a process of their own (by one each if that process
dies), so that a library that cannot be imported, or that kills its process, is a line of the report like any other.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from scantling import __version__
from scantling.run.diagnosis import Check, Diagnosis

log = logging.getLogger(__name__)

NEEDED: Mapping[str, tuple[str, str]] = {
    "torch": ("torch", "2.11"),
    "torchvision": ("torchvision", "0.26"),
    "timm": ("timm", "1.0.20"),
    "accelerate": ("accelerate", "1.10"),
    "numpy": ("numpy", "2.0"),
    "scipy": ("scipy", "1.13"),
    "opencv-python-headless": ("cv2", "4.13"),
    "pillow": ("PIL", "11"),
    "pycocotools": ("pycocotools.mask", "2.0.11"),
    "safetensors": ("safetensors.torch", "0.5"),
    "pydantic": ("pydantic", "2.10"),
    "typer": ("typer", "0.26"),
    "rich": ("rich", "13.9"),
    "pyyaml": ("yaml", "6.0.2"),
    "jinja2": ("jinja2", "3.1.5"),
    "matplotlib": ("matplotlib", "3.10"),
    "fsspec": ("fsspec", "2025.3"),
}
"""Distribution -> what to import, and the oldest version that will do."""

OLDEST_PYTHON = (3, 11)
GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHARED = 5 * GIB, 4 * GIB, 1 * GIB
TIMEOUT = 120
_HOTCOCO, _DEVICE = "hotcoco", "device"

BOTH_TORCHES = "pip install --force-reinstall torch torchvision  (both in one command, from the same place)"


def examine(folder: Path, address: str | None = None) -> Diagnosis:
    """Look at this machine and this installation, and at the machines of a cluster.

    Args:
        folder: Where runs are to be written; there must be one.
        address: Of a Ray cluster, `HOST:PORT` or `auto`; None looks at this machine alone.

    Raises:
        UsageError: Ray is not installed, or does not answer at the address.
    """
    log.info("importing %d libraries, each as scantling would; this takes some seconds", len(NEEDED))
    machine = check_system(folder)
    answers = ask_all({**import_questions(), _HOTCOCO: f"import {_HOTCOCO}", _DEVICE: _ASK_DEVICE})
    libraries = [check_library(name, _version(name), answers[name].get("error")) for name in NEEDED]
    broken = {check.topic for check in libraries if check.state == "wrong"}
    device = [] if "torch" in broken else [check_device(answers[_DEVICE], nvidia_driver())]
    hotcoco = check_hotcoco(_version(_HOTCOCO), answers[_HOTCOCO].get("error"))
    here = (*machine, *libraries, hotcoco, *device, check_clusters())
    return Diagnosis(here if address is None else (*here, *_look_at_cluster(address, folder, broken)))


def _look_at_cluster(address: str, folder: Path, broken: Collection[str]) -> Iterator[Check]:
    """The machines of a Ray cluster, if this one can ask them."""
    if broken:
        shown = f"not asked, as this machine lacks {', '.join(sorted(broken))}"
        yield Check(topic="cluster", state="note", found=shown)
        return
    from scantling.run.engines.nodes import ask_nodes, check_nodes, versions_here

    log.info("asking every machine of the cluster at %s", address)
    yield from check_nodes(ask_nodes(address, folder), versions_here(), folder)


def check_clusters() -> Check:
    """What would have stages done by other machines, all of which may be missing."""
    found = {name: _version(name) for name in ("ray", "submitit")}
    shown = ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    return Check(topic="clusters", state="ok", found=shown)


def check_system(folder: Path) -> Iterator[Check]:
    """Python, processor, memory, shared memory, disk."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    remedy = f"install Python {wanted} or newer" if old else None
    yield Check(topic="scantling", state="ok", found=__version__)
    yield Check(topic="python", state="wrong" if old else "ok", found=python, remedy=remedy)
    yield Check(topic="processor", state="ok", found=f"{usable_cores()} cores")
    yield _amount("memory", free_memory(), LITTLE_MEMORY, "close other programs; use smaller batches")
    shared = Path("/dev/shm")
    if shared.is_dir():
        remedy = "in Docker add --shm-size=8g (or --ipc=host), or train with train.workers=0"
        yield _amount("shared memory", shutil.disk_usage(shared).free, LITTLE_SHARED, remedy)
    yield _amount(
        f"disk ({folder})", shutil.disk_usage(folder).free, LITTLE_DISK, "free some, or use another --out"
    )


def import_questions() -> dict[str, str]:
    """Code that imports each needed library and, where its compiled part may be missing, tries it."""
    return {name: f"import {module}\n{_TRIALS.get(name, '')}" for name, (module, _) in NEEDED.items()}


def check_library(name: str, version: str | None, problem: str | None) -> Check:
    """Whether a library is there, new enough, and can be imported.

    Args:
        name: Of the distribution.
        version: Installed version, if any.
        problem: What its import raised; None if nothing.
    """
    oldest = NEEDED[name][1]
    install = f"pip install '{name}>={oldest}'"
    if problem is not None:
        return explain_failure(name, version, problem, install)
    if version is not None and _numbers(version) < _numbers(oldest):
        return Check(topic=name, state="wrong", found=f"{version} is too old", remedy=install)
    return Check(topic=name, state="ok", found=version or "there (no version known)")


def explain_failure(name: str, version: str | None, problem: str, install: str) -> Check:
    """A library that cannot be imported, and what is to be done about it.

    Args:
        name: Of the distribution.
        version: Installed version, if any.
        problem: What the import said.
        install: What would install it.
    """
    known = next((known for sign, known in _KNOWN_FAILURES.items() if sign in problem), None)
    missing = re.search(r"No module named '(\w+)", problem)
    if version is None and missing:
        return Check(topic=name, state="wrong", found="not installed", remedy=install)
    meaning: str
    remedy: str | None
    meaning, remedy = known or (problem.strip().splitlines()[-1], f"{install} --force-reinstall")
    if known is _MISMATCH and name != "torchvision":
        meaning, remedy = "cannot be imported while torchvision is broken", None
    elif missing:
        meaning, remedy = f"cannot be imported without {missing[1]}", None
    return Check(topic=name, state="wrong", found=f"{version or 'unknown version'}: {meaning}", remedy=remedy)


def check_device(found: Mapping[str, Any], driver: str | None) -> Check:
    """The GPU, or why it is not used.

    Args:
        found: What torch says: `gpus`, `cuda` (its version, None for a build without), `mps`, or `error`.
        driver: Version of the NVIDIA driver; None without one.
    """
    if "error" in found:
        shown = f"torch cannot look for one: {str(found['error']).splitlines()[-1]}"
        return Check(topic="GPU", state="note", found=shown, remedy="use --device cpu")
    gpus = found["gpus"]
    if gpus and not found["trial"]:
        shown = ", ".join(f"{gpu['name']} ({gpu['gib']:.0f} GiB)" for gpu in gpus)
        return Check(
            topic="GPU", state="ok", found=f"{shown}, CUDA {found['cuda']}, driver {driver or 'unknown'}"
        )
    if gpus:
        shown = f"{gpus[0]['name']} is there but cannot compute: {found['trial']}"
        return Check(
            topic="GPU", state="note", found=shown, remedy=f"{BOTH_TORCHES}; until then --device cpu"
        )
    if driver and found["cuda"] is None:
        shown = f"driver {driver} is there, but this torch is built without CUDA"
        return Check(topic="GPU", state="note", found=shown, remedy=BOTH_TORCHES)
    if driver:
        shown = f"driver {driver} is there, but torch (CUDA {found['cuda']}) finds no GPU"
        remedy = "update the driver, or see whether CUDA_VISIBLE_DEVICES hides the GPU"
        return Check(topic="GPU", state="note", found=shown, remedy=remedy)
    if found["mps"]:
        return Check(topic="GPU", state="ok", found="Apple GPU; use --device mps")
    return Check(topic="GPU", state="ok", found="none: training runs on the CPU, with small models")


def check_hotcoco(version: str | None, problem: str | None) -> Check:
    """The faster evaluation, which may be missing.

    Args:
        version: Installed version, if any.
        problem: What its import raised; None if nothing.
    """
    if version is None:
        remedy = "pip install hotcoco  (same numbers, evaluated much faster)"
        return Check(topic=_HOTCOCO, state="note", found="not installed", remedy=remedy)
    if problem is not None:
        remedy = "--backend pycocotools"
        return Check(topic=_HOTCOCO, state="note", found=problem.splitlines()[-1], remedy=remedy)
    return Check(topic=_HOTCOCO, state="ok", found=version)


def ask_all(questions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Several pieces of code in one process, or in one each if that process dies.

    Args:
        questions: Name -> code as for `ask`.

    Returns:
        Name -> its facts, or `error`.
    """
    together = ask(f"{_ATTEMPT}attempt({dict(questions)!r}, facts)")
    return together if "error" not in together else {name: ask(code) for name, code in questions.items()}


def ask(code: str) -> dict[str, Any]:
    """Run Python code in a process of its own.

    Args:
        code: May put facts into the dictionary `facts`.

    Returns:
        The facts, or `error` with what was raised; a process that dies or hangs is an error too.
    """
    command = [sys.executable, "-c", _FRAME, code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT} s"}
    except OSError as error:
        return {"error": str(error)}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.rpartition(_MARK)[2])
    except ValueError:
        return {"error": f"the process that imported it ended with code {done.returncode}"}
    return answer


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, as its own tool tells it; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def free_memory() -> int | None:
    """Bytes that a program can still get, with the limit of a container; None where the system does not say."""
    text = _read("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    amounts = [int(found[1]) * 1024] if found else []
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        amounts.append(max(0, int(limit) - int(used)))
    return min(amounts, default=None)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _amount(topic: str, free: int | None, little: int, remedy: str) -> Check:
    if free is None:
        return Check(topic=topic, state="ok", found="unknown")
    short = free < little
    shown = f"{free / GIB:.1f} GiB free"
    return Check(topic=topic, state="note" if short else "ok", found=shown, remedy=remedy if short else None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """`2.15.0+cpu` as (2, 15, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


_MARK = "\x1escantling "
_FRAME = f"""
import json, sys
facts = {{}}
try:
    exec(sys.argv[1], {{"facts": facts}})
except BaseException as error:
    facts = {{"error": f"{{type(error).__name__}}: {{error}}"}}
sys.stdout.write({_MARK!r} + json.dumps(facts))
"""

_ATTEMPT = """
def attempt(steps, answers):
    for name, step in steps.items():
        answers[name] = found = {}
        try:
            exec(step, {"facts": found})
        except BaseException as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
"""

_TRIALS: Mapping[str, str] = {
    "torchvision": "import torch, torchvision.ops\n"
    "torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)",
    "pycocotools": "import numpy\n"
    "pycocotools.mask.encode(numpy.asfortranarray(numpy.ones((2, 2), dtype=numpy.uint8)))",
}
"""Distribution -> code that must run after the import; its compiled part may be missing."""

_MISMATCH = (
    "does not belong to this torch: it was built for another version, or one of the two is for CPUs only",
    BOTH_TORCHES,
)
_KNOWN_FAILURES: Mapping[str, tuple[str, str]] = {
    "torchvision::nms does not exist": _MISMATCH,
    "load custom C++ ops": _MISMATCH,
    "partially initialized module 'torchvision'": _MISMATCH,
    "libGL.so": (
        "this is the OpenCV with windows, and the system has no graphics library",
        "pip uninstall --yes opencv-python; pip install --force-reinstall opencv-python-headless",
    ),
    "numpy.dtype size changed": (
        "was built for another numpy",
        "pip install --force-reinstall numpy pycocotools scipy",
    ),
}
"""What an error contains -> what it means, and what to do."""

_ASK_DEVICE = """
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
facts["gpus"] = [{"name": gpu.name, "gib": gpu.total_memory / 2**30} for gpu in gpus]
facts["cuda"] = torch.version.cuda
facts["mps"] = torch.backends.mps.is_available()
facts["trial"] = None
if gpus:
    try:
        torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
        torch.cuda.synchronize()
    except Exception as error:
        facts["trial"] = str(error).splitlines()[0]
"""
