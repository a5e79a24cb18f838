"""Stages on a cluster of two machines, simulated on one: as on a single machine, whatever becomes of the machines."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference.forked import Forked
from reference.masked_parts import write_masked_parts
from scantling.recipe.recipe import parse_recipe
from scantling.recipe.suite import Suite
from scantling.run.engines.choice import Engine
from scantling.run.factors import ablate_factors
from scantling.run.leases import LEASES, LeaseState, current_leases, read_log
from scantling.run.pipeline import run_recipe
from scantling.run.running import LOGS
from scantling.run.suite import run_suite
from scantling.synth.synth import SynthConfig, write_synth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RAY = Engine(name="ray")
PATIENCE = 150.0
ROOT = Path(__file__).parents[2]
MODEL = (
    "{name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,"
    " num_train_proposals: 50, num_rois: 16}"
)
MEMBER = f"""
    model: {MODEL}
    augment: {{short_side: 48, long_side: 64}}
    train: {{epochs: 8, batch_size: 2, workers: 0, warmup_steps: 2, log_every: 1, validate_every: 8,
             checkpoint_every: 2}}
    predict: {{scales: 48, long_side: 64, suppress: {{score_threshold: 0.0, max_per_image: 10}}}}
"""
RECIPE = f"members:\n  one:{MEMBER}  two:{MEMBER}" + (
    "data: {folds: 3}\ncombine: {tune: {weights: false}, ensemble: {}, eliminate: {}}\nevaluate: {bootstrap: 10}\n"
)
OWN = {"env.json", "run.log", "status.json", "report.html", "done.json"}
"""Files that tell when and how something was done; `done.json` of the report and of what is made from it."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head that does no work, and two machines of one processor each."""
    pytest.importorskip("ray")
    from scantling.run.engines.ray import require_ray

    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    own = {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }  # else they give way to all
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    ray = require_ray()
    from ray.cluster_utils import Cluster

    options = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_synth(folder, SynthConfig(size_hw=(96, 128)), splits={"train": 6, "val": 2}, seed=0)
    return folder


@pytest.fixture(scope="module")
def alone(scenes, tmp_path_factory) -> Path:
    """The folder of the run that one process has done."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run_recipe(parse_recipe(RECIPE, file="r.yaml").on(data=scenes), out, device="cpu")
    return out


def files_in(folder: Path) -> dict[str, bytes]:
    """All that a run leaves but what tells when, how and where."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in OWN]
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: held for name, held in named.items() if not name.startswith((f"{LEASES}/", f"{LOGS}/"))}


def assert_same(ours: Path, theirs: Path) -> None:
    first, second = files_in(ours), files_in(theirs)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def assert_never_two_at_a_time(root: Path, ends: tuple[str, ...] = ("done",)) -> None:
    """From the leases: each generation of a stage was taken after the one before had ended, or its machine was gone."""
    entries = read_log(root)
    for title, of_stage in itertools.groupby(sorted(entries, key=lambda e: e["stage"]), lambda e: e["stage"]):
        held = None
        for entry in of_stage:
            if entry["event"] == "taken":
                assert held is None, title
                held = entry["owner"]
            elif entry["event"] == "taken over":
                assert entry["from"] == held, title
                held = entry["owner"]
            else:
                assert (entry["owner"], entry["event"] in ends) == (held, True), title
                held = None
        assert held is None, title


def test_a_run_with_folds_and_members_equals_that_of_one_process_to_the_bit(cluster, scenes, alone, tmp_path):
    recipe = parse_recipe(RECIPE, file="r.yaml").on(data=scenes)
    summary = run_recipe(recipe, tmp_path / "run", device="cpu", engine=RAY)
    assert summary.finds_objects
    assert_same(tmp_path / "run", alone)
    assert_never_two_at_a_time(tmp_path / "run")
    stages = json.loads((tmp_path / "run/status.json").read_text())["stages"]
    assert set(stages.values()) == {"done"}
    owners = {entry["owner"] for entry in read_log(tmp_path / "run")}
    assert len(owners) >= 2
    assert f"process {os.getpid()} " not in " ".join(owners)
    assert "training" in (tmp_path / "run" / LOGS / "members.one.fold-0.train.log").read_text()
    again = run_recipe(recipe, tmp_path / "run", device="cpu", engine=RAY)
    assert again.metrics == summary.metrics
    stages = json.loads((tmp_path / "run/status.json").read_text())["stages"]
    assert set(stages.values()) == {"kept"}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing during this block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while status_of(pid)[0] != "T":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def status_of(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; the parent's number is the second.

    Raises:
        ProcessLookupError: It is gone.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        status = ["X"]
    if status[0] in "ZX":
        raise ProcessLookupError(pid)
    return status


def has_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
def test_machines_killed_in_the_middle_of_trainings_change_nothing(cluster, scenes, alone, tmp_path):
    root, killed = tmp_path / "run", []

    def training() -> dict[str, LeaseState]:
        """Stages of training that have done a step and go on, and who does each."""
        held = {title: state for title, state in current_leases(root).items() if state.outcome is None}
        begun = {title for title in held if has_text(root / Path(title).parent / "metrics.jsonl")}
        return {title: held[title] for title in begun if title.endswith("/train") and title not in killed}

    def machine_of(pid: int):
        """The one whose processes include this."""
        parent = int(status_of(pid)[1])
        return next(
            node
            for node in cluster.worker_nodes
            if any(info.process.pid == parent for infos in node.all_processes.values() for info in infos)
        )

    recipe = parse_recipe(RECIPE, file="r.yaml").on(data=scenes)
    options = {"device": "cpu", "engine": replace(RAY, patience=5.0)}
    driver = threading.Thread(target=run_recipe, args=(recipe, root), kwargs=options)
    driver.start()
    while driver.is_alive():
        if len(killed) < 3 and (begun := training()):
            title, state = next(iter(begun.items()))
            with suppress(ProcessLookupError), stopped(state.owner.pid):
                if current_leases(root)[title].outcome is None:  # else it has just ended
                    cluster.remove_node(machine_of(state.owner.pid), allow_graceful=False)
                    os.kill(
                        state.owner.pid, signal.SIGKILL
                    )  # with its machine, not a moment later as Ray has it
                    killed.append(title)
                    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        time.sleep(0.02)
    driver.join()
    assert len(killed) == 3
    assert_same(root, alone)
    assert_never_two_at_a_time(root)
    assert {entry["stage"] for entry in read_log(root) if entry["event"] == "taken over"} >= set(killed)


@pytest.mark.usefixtures("cluster")
def test_an_ablation_of_factors_equals_that_of_one_process_to_the_bit(scenes, tmp_path):
    factors = """
ablation:
  design: full
  factors:
    seesaw: {model.class_loss: seesaw}
    few: {predict.suppress.max_per_image: 2}
"""
    recipe = parse_recipe(f"members:\n  one:{MEMBER}evaluate: {{bootstrap: 10}}{factors}", file="r.yaml").on(
        data=scenes
    )
    first = ablate_factors(recipe, tmp_path / "alone", device="cpu")
    second = ablate_factors(recipe, tmp_path / "cluster", device="cpu", engine=RAY)
    assert second.text == first.text
    assert_same(tmp_path / "cluster", tmp_path / "alone")
    assert_never_two_at_a_time(tmp_path / "cluster")
    stages = json.loads((tmp_path / "cluster/combinations/few/status.json").read_text())["stages"]
    assert stages["members/one/train"] == "shared"


@pytest.mark.usefixtures("cluster")
def test_a_suite_equals_that_of_one_process_and_a_set_that_fails_costs_no_other(tmp_path):
    for number, name in enumerate(("alpha", "beta", "gamma")):
        write_masked_parts(tmp_path / "sets" / name, {"train": 4, "val": 2}, seed=number)
    member = MEMBER.replace("faster_rcnn_r18_small", "mask_rcnn_r18_small")
    recipe = parse_recipe(f"members:\n  one:{member}evaluate: {{bootstrap: 10}}", file="r.yaml")
    suite = Suite(name="s", recipe=recipe, overrides={})
    for out in ("alone", "cluster"):  # what beta learns cannot be written
        (tmp_path / out / "beta/members/one/best.safetensors/in-the-way").mkdir(parents=True)
        (tmp_path / out / "beta/status.json").write_text("{}")
        (tmp_path / out / "status.json").write_text("{}")
    first = run_suite(suite, tmp_path / "sets", tmp_path / "alone", device="cpu")
    second = run_suite(suite, tmp_path / "sets", tmp_path / "cluster", device="cpu", engine=RAY)
    assert list(first.failures) == ["beta"]
    assert [name for name, told in second.failures.items() if "IsADirectoryError" in told] == ["beta"]
    assert second.tables == first.tables
    for name in ("alpha", "gamma"):
        assert_same(tmp_path / "cluster" / name, tmp_path / "alone" / name)
    assert_never_two_at_a_time(tmp_path / "cluster", ("done", "failed"))
    assert "fails" not in (tmp_path / "cluster/alpha/run.log").read_text()
    assert "members/one/train failed" in (tmp_path / "cluster/beta/run.log").read_text()
    assert "members/one/train failed" not in (tmp_path / "cluster/gamma/run.log").read_text()


@pytest.mark.usefixtures("cluster")
def test_what_fails_is_told_with_its_log_and_what_a_signal_stops_has_saved_its_state(tmp_path, scenes):
    """The driver as a process of its own, stopped while it trains."""
    import ray

    root = tmp_path / "run"
    long = RECIPE.replace("epochs: 8", "epochs: 500")
    (tmp_path / "r.yaml").write_text(long)
    options = ["--data", str(scenes), "--out", str(root), "--engine", "ray", "--device", "cpu"]
    address = ray.get_runtime_context().gcs_address
    command = ["run", str(tmp_path / "r.yaml"), *options, "--address", address]
    process = Forked(command, tmp_path, environment=os.environ)
    saved = [root / f"members/one/fold-{fold}/metrics.jsonl" for fold in (0, 1)]
    deadline = time.monotonic() + PATIENCE
    while (
        not all(path.is_file() for path in saved) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, told
    assert "stopped by SIGTERM" in told
    assert [path.with_name("last.safetensors").is_file() for path in saved] == [True, True]
    assert json.loads((root / "status.json").read_text())["state"] == "interrupted"


def test_a_cluster_that_does_not_answer_is_a_mistake_of_the_address(tmp_path):
    pytest.importorskip("ray")
    source = str(ROOT / "src")
    code = (
        "from scantling.run.engines.ray import connected\n"
        "from scantling.errors import UsageError\n"
        "try:\n    with connected('127.0.0.1:1'): pass\nexcept UsageError as error: print(error.message, error.hint)"
    )
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stdout, done.stderr
    assert "leave --address out" in done.stdout


def test_nothing_connects_to_another_machine(tmp_path):
    """Every Python process of a local Ray writes down where it connects to."""
    pytest.importorskip("ray")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def look(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        place = args[1] if event == 'socket.connect' else args[0]\n"
        "        with open(os.environ['CONNECTIONS'], 'a') as stream:\n"
        "            stream.write(f'{event} {place!r}\\n')\n"
        "sys.addaudithook(look)\n"
    )
    told = tmp_path / "connections"
    code = (
        "from scantling.run.engines.ray import connected\n"
        "import socket\n"
        "with connected(None) as ray:\n"
        "    assert ray.get(ray.remote(lambda: 5).remote()) == 5\n"
        "    print(ray.util.get_node_ip_address(), socket.gethostname())\n"
        "    from ray._common.usage import usage_lib\n"
        "    print(usage_lib.usage_stats_enabled())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(hooks), str(ROOT / "src")]),
        "CONNECTIONS": str(told),
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    address, name, enabled = done.stdout.split()
    assert enabled == "False", done.stderr
    own = {address, name, "127.0.0.1", "localhost", "::1", "0.0.0.0"}
    places = [line.split(" ", 1) for line in told.read_text().splitlines()]
    assert places, "the hook saw nothing"
    looked = {place for event, place in places if event == "socket.connect" and place.startswith("(")}
    asked = {place for event, place in places if event == "socket.getaddrinfo"}
    strangers = [place for place in looked | asked if not any(repr(each) in place for each in own)]
    assert [place for place in strangers if "8.8.8.8" not in place and place != "None"] == []
