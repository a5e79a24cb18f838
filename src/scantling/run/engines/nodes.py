"""The machines of a Ray cluster, each asked by a small task of its own whether stages can be done there.

    driver ── one task per machine ──► versions, GPUs
           ── one task per machine, which waits for a file ──► the driver writes it ──► seen after how long

Nothing heavy is imported here, so that a machine whose libraries are broken can answer, too.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from scantling import __version__
from scantling.errors import UsageError
from scantling.run.diagnosis import Check
from scantling.run.running import SIGHT_SECONDS

_CONTACT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_SLOW_SECONDS = 5.0
_HEAD_START_SECONDS = 1.0

SAME_EVERYWHERE = "install the same on all machines: results would differ, and other versions are refused"
SHARED_FOLDER = "use a folder that all machines see under the same path, on a network drive for example"

_PROXIES, _KEPT_PROXY = ("http_proxy", "HTTP_PROXY"), "SCANTLING_HTTP_PROXY"
_NOWHERE = "http://127.0.0.1:9"
"""The port of this machine that takes everything and keeps nothing, and is closed nearly everywhere."""
REMEDY = "Look at it with `ray status`, or leave --address out to use this machine."


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a machine says of itself.

    Attributes:
        name: Host and the beginning of Ray's number of the node.
        versions: Of what must be the same everywhere; None for what is not installed.
        gpus: Names of the GPUs that its driver knows.
        promised_gpus: Number of GPUs that Ray gives to stages there.
        seen_after: Seconds until a new file of the driver was seen there; None if it was not.
        problem: Why there is no answer; None if there is one.
    """

    name: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    gpus: Sequence[str] = ()
    promised_gpus: int = 0
    seen_after: float | None = None
    problem: str | None = None


def versions_here() -> dict[str, str | None]:
    """Of what must be the same on all machines."""
    return {
        "python": platform.python_version(),
        "scantling": __version__,
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
    }


def version_differences(found: Mapping[str, str | None], own: Mapping[str, str | None]) -> list[str]:
    """Such as `torch 2.11.0, here 2.12.0`."""
    return [
        f"{name} {found.get(name) or 'not installed'}, here {version or 'not installed'}"
        for name, version in own.items()
        if found.get(name) != version
    ]


def ask_nodes(address: str, folder: Path) -> list[NodeReport]:
    """What every machine of a cluster says of itself.

    Args:
        address: `HOST:PORT` or `auto`.
        folder: Which all are to see; a file is written there and removed again.

    Raises:
        UsageError: Ray is not installed, does not answer at the address, or the folder cannot be written to.
    """
    from scantling.run.engines.ray import connected

    with connected(address) as ray:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        answers = _answers(ray, {node: _task(ray, describe_node, node).remote() for node in nodes})
        reports = {node: _report(nodes[node], answer) for node, answer in answers.items()}
        there = [node for node, report in reports.items() if report.problem is None]
        seen = _sight(ray, there, folder.absolute())
    return [replace(report, seen_after=seen.get(node)) for node, report in reports.items()]


def largest_node(ray: Any) -> tuple[float, float]:
    """Processors and GPUs of the machine that has most of the latter, then of the former."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes]
    gpus, processors = max(sizes, default=(0.0, 1.0))
    return processors, gpus


@contextmanager
def asking_nobody() -> Iterator[None]:
    """Let a Ray that is started meanwhile ask no other machine.

    With its statistics switched off it still asks, over plain HTTP, whether it runs in somebody's cloud, and may report
    that they are off. What it starts inherits a way to nowhere; `do_stage` gives the work its own way back.
    """
    before = {name: os.environ.get(name) for name in _PROXIES}
    given = before["http_proxy"] or before["HTTP_PROXY"] or ""
    own = {**dict.fromkeys(_PROXIES, _NOWHERE), _KEPT_PROXY: given, "RAY_USAGE_STATS_REPORT_URL": _NOWHERE}
    before |= {name: os.environ.get(name) for name in own}
    os.environ |= own
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def ask_as_before() -> None:
    """In a process of the cluster: use the way to other machines that the driver has."""
    given = os.environ.pop(_KEPT_PROXY, None)
    if given is not None:
        for name in _PROXIES:
            os.environ.pop(name, None)
            if given:
                os.environ[name] = given


def require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        UsageError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONTACT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}", hint=REMEDY) from error


def check_nodes(
    reports: Iterable[NodeReport], own: Mapping[str, str | None], folder: Path
) -> Iterator[Check]:
    """A line for each machine, and one more for each thing that is not as on this one.

    Args:
        reports: Of all machines.
        own: Versions on this one.
        folder: Which all are to see.
    """
    for report in reports:
        topic = f"node {report.name}"
        if report.problem is not None:
            remedy = "install scantling there, in the environment in which Ray was started"
            yield Check(topic=topic, state="wrong", found=report.problem, remedy=remedy)
            continue
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        gpus = f"{len(report.gpus)} GPUs ({', '.join(report.gpus)})" if report.gpus else "no GPU"
        yield Check(topic=topic, state="ok", found=f"{versions}; {gpus}")
        if differing := version_differences(report.versions, own):
            yield Check(topic=topic, state="wrong", found="; ".join(differing), remedy=SAME_EVERYWHERE)
        if report.promised_gpus != len(report.gpus):
            shown = f"Ray gives {report.promised_gpus} GPUs to stages, and there are {len(report.gpus)}"
            yield Check(topic=topic, state="note", found=shown, remedy="start Ray there with --num-gpus")
        yield _check_sight(topic, report.seen_after, folder)


def describe_node() -> dict[str, Any]:
    """The task: what the machine it runs on says of itself."""
    return {"host": socket.gethostname(), "versions": versions_here(), "gpus": _gpu_names()}


def await_file(path: str, content: str, seconds: float) -> bool:
    """The task: whether a file with this content is seen in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(path).read_text(encoding="utf-8") == content:
                return True
        except OSError:  # not there yet
            pass
        time.sleep(0.02)
    return False


def _check_sight(topic: str, seen_after: float | None, folder: Path) -> Check:
    if seen_after is None:
        shown = f"does not see what this machine writes into {folder.absolute()}"
        return Check(topic=topic, state="wrong", found=shown, remedy=SHARED_FOLDER)
    shown = f"sees {folder.absolute()}, a new file after {seen_after:.1f} s"
    if seen_after <= _SLOW_SECONDS:
        return Check(topic=topic, state="ok", found=shown)
    remedy = "works, but every stage waits for it; mount the folder with shorter caching of attributes (NFS: actimeo=1)"
    return Check(topic=topic, state="note", found=shown, remedy=remedy)


def _task(ray: Any, function: Any, node: str) -> Any:
    """A task that is done on one machine, however busy that is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(function)


def _answers(ray: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What tasks return, by their keys; for one that fails, what it raised."""
    waiting = list(tasks.values())
    ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=_ANSWER_SECONDS)
    answers = dict[str, Any]()
    for node, task in tasks.items():
        if task not in ready:
            answers[node] = TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
            continue
        try:
            answers[node] = ray.get(task)
        except ray.exceptions.RayError as error:
            answers[node] = error
    return answers


def _report(node: Mapping[str, Any], answer: Any) -> NodeReport:
    promised = int(node["Resources"].get("GPU", 0))
    name = f"{node['NodeManagerHostname']} {node['NodeID'][:6]}"
    if isinstance(answer, Exception):
        told = str(answer).strip().splitlines()
        return NodeReport(name=name, promised_gpus=promised, problem=told[-1] if told else repr(answer))
    return NodeReport(
        name=name, versions=answer["versions"], gpus=tuple(answer["gpus"]), promised_gpus=promised
    )


def _sight(ray: Any, nodes: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds until each machine saw a new file, by the clock of this one; those that did not are left out."""
    file, content = folder / f".scantling-doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    arguments = (str(file), content, SIGHT_SECONDS)
    tasks = {_task(ray, await_file, node).remote(*arguments): node for node in nodes}
    time.sleep(
        _HEAD_START_SECONDS
    )  # they look for it in vain first, as a machine does that waits for a stage
    seen = dict[str, float]()
    try:
        began = time.monotonic()
        file.write_text(content, encoding="utf-8")
        waiting = list(tasks)
        while waiting and time.monotonic() < began + SIGHT_SECONDS + _ANSWER_SECONDS:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
            for task in ready:
                if _is_true(ray, task):
                    seen[tasks[task]] = time.monotonic() - began
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to: {error.strerror}") from error
    finally:
        file.unlink(missing_ok=True)
    return seen


def _is_true(ray: Any, task: Any) -> bool:
    try:
        return bool(ray.get(task))
    except ray.exceptions.RayError:
        return False


def _gpu_names() -> list[str]:
    """As the NVIDIA driver's own tool tells them; a task without a GPU is shown none by CUDA."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
