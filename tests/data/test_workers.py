"""Work ahead in other processes: order, faults, deaths, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import torch

from scantling.data.workers import TaskStream, explain_worker_failure, worker_failures
from scantling.errors import DataError, Finding, Severity, TrainingError


def slower_for_even(task):
    time.sleep(0.02 * (task % 2 == 0))
    return task * task


def tensors(task):
    return {"large": torch.full((300, 300), task), "small": torch.arange(task), "name": str(task)}


def fail_at_three(task):
    if task == 3:
        finding = Finding(code="image-damaged", severity=Severity.ERROR, message="m", file="c.jpg")
        raise DataError("c.jpg is damaged", findings=[finding], hint="Replace it.")
    return task


def bug_at_three(task):
    return [task][0 if task != 3 else 1]


def die_at_three(task):
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def process_id(task):
    return os.getpid()


def wait_a_little(task):
    time.sleep(0.05)
    return os.getpid()


def asked_from_outside(process):
    """SIGTERM as `timeout` or a scheduler sends it: not from the main process."""
    subprocess.run(["kill", "-TERM", str(process)], check=True)


@pytest.fixture
def stream_of():
    """Makes streams that end with the test."""
    with ExitStack() as streams:
        yield lambda function, workers: streams.enter_context(TaskStream(function, workers))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_tasks_in_every_run(stream_of, workers):
    stream = stream_of(slower_for_even, workers)
    assert list(stream.run(range(7))) == [task * task for task in range(7)]
    assert list(stream.run([5, 1])) == [25, 1]
    assert list(stream.run([])) == []


def test_without_workers_nothing_runs_elsewhere_and_nothing_ahead(stream_of):
    stream = stream_of(process_id, 0)
    assert set(stream.run(range(3))) == {os.getpid()}
    done = []
    results = stream_of(done.append, 0).run(range(3))
    next(results)
    assert done == [0]


def test_the_same_processes_serve_every_run_until_closed(stream_of):
    stream = stream_of(process_id, 2)
    first, second = set(stream.run(range(8))), set(stream.run(range(8)))
    assert first == second
    assert os.getpid() not in first
    stream.close()
    assert not first & set(stream.run(range(8)))


def test_an_unfinished_run_does_not_leak_into_the_next(stream_of):
    stream = stream_of(slower_for_even, 2)
    unfinished = stream.run(range(20))
    assert next(unfinished) == 0
    unfinished.close()
    assert list(stream.run([9, 8])) == [81, 64]


def test_large_and_small_tensors_arrive_as_sent(stream_of):
    for task, result in enumerate(stream_of(tensors, 2).run(range(4))):
        assert (result["large"] == task).all()
        assert result["small"].tolist() == list(range(task))
        assert result["small"].dtype == torch.int64
        assert result["name"] == str(task)


def test_small_tensors_take_no_file_descriptors(stream_of):
    """Ten thousand small tensors held at once: one descriptor each would exceed the usual limit of 1024."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - not a data path
    kept = list(stream_of(many_small, 1).run(range(10)))
    assert len(kept) == 10
    assert len(os.listdir("/proc/self/fd")) - before < 50  # noqa: PTH208


def many_small(task):
    return [torch.tensor([task, i]) for i in range(1000)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_input_arrives_unchanged_and_in_its_turn(stream_of, workers):
    results = stream_of(fail_at_three, workers).run(range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(results)
    assert caught.value.message == "c.jpg is damaged"
    assert caught.value.hint == "Replace it."
    assert [finding.code for finding in caught.value.findings] == ["image-damaged"]


def test_a_bug_stays_a_bug(stream_of):
    with pytest.raises(IndexError):
        list(stream_of(bug_at_three, 1).run(range(6)))


def test_a_killed_worker_is_an_error_with_cause_and_remedy_and_the_stream_recovers(stream_of):
    stream = stream_of(die_at_three, 2)
    with pytest.raises(
        TrainingError, match="killed from outside, most often because memory ran out"
    ) as caught:
        list(stream.run(range(8)))
    assert "fewer workers" in str(caught.value)
    assert list(stream.run([0, 1])) == [0, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers obey everybody's SIGTERM")
def test_workers_leave_sigterm_from_outside_to_the_main_process(stream_of):
    stream = stream_of(wait_a_little, 2)
    results = stream.run(range(12))
    processes = {next(results), next(results)}
    for process in processes:
        asked_from_outside(process)
    assert set(results) == processes


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_end_when_the_main_process_says_so(start, tmp_path):
    """Whatever way of starting processes the program around us has chosen."""
    script = tmp_path / "held_open.py"
    script.write_text(HELD_OPEN)
    main = subprocess.Popen(
        [sys.executable, script, start],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, told = main.communicate(timeout=60)
    finally:
        if main.poll() is None:
            os.killpg(main.pid, signal.SIGKILL)
    assert (main.returncode, told) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(out), 0)


HELD_OPEN = """
import multiprocessing, os, sys
from scantling.data.workers import TaskStream

def process_id(task):
    return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    stream = TaskStream(process_id, 1)
    results = stream.run(range(100))
    print(next(results), flush=True)
    sys.held = stream, results  # still there when Python ends the processes
"""


def test_workers_leave_the_global_random_state_alone(stream_of):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    stream = stream_of(slower_for_even, 2)
    list(stream.run(range(4)))
    list(stream.run(range(4)))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "killed from outside"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "shared memory is full"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left"),
            "shared memory is full",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "died"),
        (OSError(24, "Too many open files"), "too many files"),
        (MemoryError(), "memory ran out"),
        (ConnectionRefusedError(111, "Connection refused"), "died"),
    ],
)
def test_machinery_errors_are_explained(error, cause):
    with pytest.raises(TrainingError, match=cause) as caught, worker_failures():
        raise error
    assert caught.value.hint
    assert caught.value.__cause__ is error


def test_other_errors_pass_through():
    assert explain_worker_failure(RuntimeError("size mismatch")) is None
    with pytest.raises(RuntimeError, match="size mismatch"), worker_failures():
        raise RuntimeError("size mismatch")
