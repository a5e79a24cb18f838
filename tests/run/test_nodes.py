"""The machines of a cluster: what they say of themselves, and what is wrong with it."""

from __future__ import annotations

import socket
import threading

import pytest

from scantling import api
from scantling.errors import UsageError
from scantling.run.engines import nodes
from scantling.run.engines.nodes import (
    NodeReport,
    ask_nodes,
    await_file,
    check_nodes,
    require_answer,
    versions_here,
)

OWN = {"python": "3.12.3", "scantling": "0.1", "torch": "2.12.0"}


def report(**changes) -> NodeReport:
    return NodeReport(**({"name": "box 12ab", "versions": OWN, "seen_after": 0.1} | changes))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, [("ok", "torch 2.12.0; no GPU"), ("ok", "a new file after 0.1 s")]),
        (
            {"versions": OWN | {"torch": "2.11.0", "scantling": None}},
            [
                ("ok", "torch 2.11.0"),
                ("wrong", "scantling not installed, here 0.1; torch 2.11.0, here 2.12.0"),
                ("ok", "a new file"),
            ],
        ),
        (
            {"gpus": ("RTX 5090", "RTX 5090"), "promised_gpus": 1},
            [
                ("ok", "2 GPUs (RTX 5090, RTX 5090)"),
                ("note", "Ray gives 1 GPUs to stages, and there are 2"),
                ("ok", "a new file"),
            ],
        ),
        ({"seen_after": 12.0}, [("ok", "no GPU"), ("note", "a new file after 12.0 s")]),
        ({"seen_after": None}, [("ok", "no GPU"), ("wrong", "does not see what this machine writes")]),
        ({"problem": "No module named 'scantling'"}, [("wrong", "No module named 'scantling'")]),
    ],
)
def test_each_machine_has_its_lines(tmp_path, changes, lines):
    checks = list(check_nodes([report(**changes)], OWN, tmp_path))
    assert [check.state for check in checks] == [state for state, _ in lines]
    for check, (state, words) in zip(checks, lines, strict=True):
        assert words in check.found
        assert check.topic == "node box 12ab"
        assert (check.remedy is None) == (state == "ok")


def test_a_file_is_awaited_until_it_holds_what_was_promised(tmp_path):
    file = tmp_path / "token"
    file.write_text("old")
    writing = threading.Timer(0.1, file.write_text, ["new"])
    writing.start()
    assert await_file(str(file), "new", 60.0)
    writing.join()
    assert not await_file(str(file), "other", 0.05)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_is_looked_up_without_its_scheme(scheme):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"{scheme}127.0.0.1:{listening.getsockname()[1]}"
        require_answer(address)
    with pytest.raises(UsageError, match=f"no Ray cluster answers at {address}: .*refused"):
        require_answer(address)


def test_without_ray_the_doctor_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="Ray, which is not installed") as caught:
        ask_nodes("auto", tmp_path)
    assert "pip install 'scantling[ray]'" in str(caught.value)


def test_a_machine_that_lacks_a_library_asks_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(nodes, "ask_nodes", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(
        "scantling.doctor.ask_all", lambda questions: dict.fromkeys(questions, {"error": "ImportError: no"})
    )
    found = api.doctor(address="auto", folder=tmp_path)
    assert found.checks[-1].found.startswith("not asked, as this machine lacks accelerate, ")
    assert {check.topic: check for check in found.checks}["clusters"].found.startswith("ray ")


@pytest.fixture(scope="session")
def two_nodes():
    """The address of a cluster of two machines, which are both this one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
    )
    cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_every_machine_of_a_cluster_is_asked(two_nodes, tmp_path):
    reports = ask_nodes(two_nodes, tmp_path)
    assert len({each.name for each in reports}) == 2
    for each in reports:
        assert each.problem is None
        assert each.versions == versions_here()
        assert each.seen_after is not None
    assert list(tmp_path.iterdir()) == []
    assert {check.state for check in check_nodes(reports, versions_here(), tmp_path)} <= {"ok", "note"}
