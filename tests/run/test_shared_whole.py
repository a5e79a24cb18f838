"""A suite or an ablation by several processes: what they agree on, what belongs together, what is told of the whole."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from reference.masked_parts import write_masked_parts
from run import shared_stages as stages
from run.test_shared import Held
from scantling import api
from scantling.errors import ConfigError, UsageError
from scantling.run.context import Workplace
from scantling.run.engines.choice import Engine
from scantling.run.engines.shared import StagePlace, do_shared
from scantling.run.engines.shared_folder import SharedFolder, Terms, WholeTerms, share_run, share_whole
from scantling.run.leases import Leases
from scantling.run.several import open_whole
from scantling.run.stage import Stage
from scantling.run.status import read_status
from scantling.run.suite_summary import log_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are seen to be gone")
CPU = torch.device("cpu")
SHARED = Engine(name="shared")
MEMBER = """
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 2, workers: 0}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 10}}
evaluate: {bootstrap: 10}
"""


def recipe_with(seed: int):
    return stages.recipe_of(f"{stages.RECIPE}\nseed: {seed}\n")


def terms(**seeds: int) -> WholeTerms:
    return WholeTerms(recipes={name: recipe_with(seed) for name, seed in seeds.items()}, device=CPU)


def nothing() -> None:
    """No facts to be written."""


def hold(root: Path, here, go) -> None:
    """Do alpha, and stay for beta."""
    place = Workplace(root=root, device=CPU, devices=(CPU,), console=Console(quiet=True))
    given = terms(alpha=1, beta=1)
    with open_whole(place, given, nothing, engine=SHARED, overwrite=False) as (_, engine):
        do_alpha(root, engine, seed=1)
        here.set()
        go.wait(stages.PATIENCE)


def do_alpha(root: Path, engine: Engine, *, seed: int) -> str:
    """Begin or join a run and end it at once; what those have in common who do it together."""
    recipe = recipe_with(seed)
    given = Terms(given=recipe.to_dict(), recipe=recipe, device=CPU)

    def write() -> None:
        (root / "alpha/recipe.yaml").write_text(recipe.to_yaml())

    with share_run(root / "alpha", given, write, launch=engine.launch) as (run, _):
        return run.launch


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (terms(alpha=1, beta=2), "beta: seed: was 1, is now 2"),
        (WholeTerms(recipes={}, device=torch.device("cuda")), 'device: was "cpu", is now "cuda"'),
        (
            WholeTerms(recipes={}, device=CPU, settings={"design": "full"}),
            'settings.design: was null, is now "full"',
        ),
    ],
)
def test_others_join_with_no_other_recipe_or_device(tmp_path, other, found):
    with Held(hold, tmp_path):
        before = (tmp_path / "status.json").read_bytes()
        with pytest.raises(UsageError, match=found), share_whole(tmp_path, other, nothing):
            pytest.fail("it was let in")
        assert (tmp_path / "status.json").read_bytes() == before
    with share_whole(tmp_path, other, nothing) as later:  # nobody is there any more
        assert later.launch == json.loads((tmp_path / "leases/launch.json").read_text())["launch"]


def test_who_joins_the_whole_joins_each_of_its_runs_also_those_that_have_ended(tmp_path):
    place = Workplace(root=tmp_path, device=CPU, devices=(CPU,), console=Console(quiet=True))
    given = terms(beta=1, gamma=3)
    with Held(hold, tmp_path):
        launches = {
            json.loads((folder / "leases/launch.json").read_text())["launch"]
            for folder in (tmp_path, tmp_path / "alpha")
        }
        with open_whole(place, given, nothing, engine=SHARED, overwrite=False) as (_, engine):
            assert {engine.launch, do_alpha(tmp_path, engine, seed=1)} == launches
            with pytest.raises(UsageError, match="seed: was 1, is now 2"):
                do_alpha(tmp_path, engine, seed=2)
        late = terms(gamma=4)  # what the second has added binds the third
        with pytest.raises(UsageError, match="gamma: seed: was 3"), share_whole(tmp_path, late, nothing):
            pytest.fail("it was let in")
    with share_whole(tmp_path, terms(alpha=1), nothing) as later:
        assert later.launch not in launches


class Several:
    """The records of stages that are of several runs, as far as these tests go."""

    ends_at_refusal = False

    def __init__(self, run: SharedFolder, listed: list[Stage]) -> None:
        self.fail, self.leave, self.expect, self.about = run.fail, run.leave, run.expect, run.about
        self.place_of = lambda stage: StagePlace(run, stage, lambda root: listed)
        self.looked_at = self.done_by_someone = lambda stage: None


def test_a_stage_that_is_refused_costs_other_runs_nothing(tmp_path):
    def refuse() -> dict:
        raise ConfigError("it was run with other settings")

    context = Workplace(root=tmp_path / "run", device=CPU, console=Console(quiet=True))
    _, *others = stages.build(context)
    refused = replace(others[0], name="a0", outputs=("all/a0.txt",), inputs=refuse)
    listed = [refused, *others[:2]]
    recipe = recipe_with(1)
    given = Terms(given=recipe.to_dict(), recipe=recipe, device=CPU)
    with share_run(context.root, given, nothing) as (run, _):
        do_shared(context, Several(run, listed), lambda _: listed)
    assert run.stages == {"all/a0": "failed", "all/a2": "done", "all/a3": "done"}


@pytest.mark.parametrize("error", [None, ValueError("full"), KeyboardInterrupt()])
def test_a_whole_goes_on_while_another_process_does_a_stage_of_one_of_its_runs(tmp_path, error):
    with suppress(ValueError, KeyboardInterrupt), share_whole(tmp_path, terms(alpha=1), nothing) as run:
        run.expect(["alpha", "beta"])
        (tmp_path / "beta").mkdir()
        (tmp_path / "beta/status.json").write_text('{"state": "running", "stages": {}}')
        lease = Leases(root=tmp_path / "beta").take("members/one/train")
        if error is not None:
            raise error
    assert lease is not None
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert read_status(tmp_path).state == "running"


def test_a_set_that_is_refused_costs_the_others_nothing(tmp_path):
    (tmp_path / "r.yaml").write_text(MEMBER)
    for number, name in enumerate(("alpha", "beta")):
        write_masked_parts(tmp_path / "sets" / name, {"train": 4, "val": 2}, seed=number)

    def suite(**options):
        return api.suite(
            tmp_path / "r.yaml", tmp_path / "sets", tmp_path / "out", device="cpu", jobs=SHARED, **options
        )

    assert not suite(sets=["alpha"]).failures
    done = suite(overrides=["members.one.train.lr=0.001"])
    assert list(done.failures) == ["alpha"]
    assert "was run with other settings" in done.failures["alpha"]
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert status["stages"] == {"alpha": "failed", "beta": "done"}


def test_the_log_of_a_set_is_that_of_the_process_for_which_it_failed(tmp_path):
    run = tmp_path / "alpha"
    (run / "logs").mkdir(parents=True)
    for name in ("run.log", "logs/host.7.log", "logs/host.8.log"):
        (run / name).write_text("x")
    assert log_of(tmp_path, "alpha") == run / "run.log"
    failures = {"members/one/train": {"reason": "it does not work", "log": "logs/host.8.log"}}
    (run / "status.json").write_text(json.dumps({"failures": failures}))
    assert log_of(tmp_path, "alpha") == run / "logs/host.8.log"
    assert log_of(tmp_path, "beta") == tmp_path / "run.log"


def test_a_folder_that_another_verb_has_begun_is_no_hindrance(tmp_path):
    left: Path = tmp_path / ".parts.1234.abcd.tmp"
    left.mkdir()
    with share_whole(tmp_path, terms(alpha=1), nothing):
        assert left.is_dir()
