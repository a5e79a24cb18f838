"""The walk over the graph of stages: each once, after what it needs, and past what fails."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from run.side_by_side_stages import Notes
from scantling.errors import ConfigError, Interrupted, UsageError
from scantling.run.engines.choice import Engine
from scantling.run.engines.schedule import Agenda, Ended, do_all
from scantling.run.stage import Stage

NEEDS = {"a": "", "b": "", "c": "a", "d": "ab", "e": "d", "f": "b", "g": "cf"}
"""c needs what a leaves, and so on."""


def stages(action=lambda _: None, needs: dict[str, str] = NEEDS) -> list[Stage]:
    return [
        Stage(
            folder=name,
            name=name,
            inputs=dict,
            needs=(*needed, "from-elsewhere"),
            outputs=(name,),
            action=partial(action, name),
        )
        for name, needed in needs.items()
    ]


def failing(*names: str):
    def act(name: str) -> None:
        if name in names:
            raise ValueError(name)

    return act


def test_stages_come_in_their_order_as_soon_as_what_they_need_is_done():
    agenda, taken = Agenda(stages()), []
    while agenda:
        taken.append(agenda.take())
    assert [stage.name for stage in taken] == ["a", "b"]
    agenda.note_done(taken[1])
    assert agenda.take().name == "f"
    assert not agenda
    agenda.note_done(taken[0])
    assert [agenda.take().name, agenda.take().name] == ["c", "d"]
    assert not agenda


def test_one_process_does_all_that_does_not_need_what_failed():
    notes = Notes()
    do_all(stages(failing("b")), notes)
    assert notes.done == ["a", "c"]
    assert list(notes.failed) == ["b"]
    assert notes.left == {"d": "b", "e": "b", "f": "b", "g": "b"}


def test_what_needs_two_that_fail_is_left_once():
    notes = Notes()
    do_all(stages(failing("a", "b")), notes)
    assert list(notes.failed) == ["a", "b"]
    assert notes.left == {"c": "a", "d": "a", "e": "a", "g": "a", "f": "b"}
    assert notes.begun == ["a", "b"]


def test_a_signal_is_no_failure():
    def stop(name: str) -> None:
        raise Interrupted(15, "stopped")

    notes = Notes()
    with pytest.raises(Interrupted):
        do_all(stages(stop), notes)
    assert (notes.begun, notes.failed) == (["a"], {})


class Pair:
    """A crew of two that ends what was begun last, and fails where it is told to."""

    def __init__(self, *fails: str) -> None:
        self.busy: list[str] = []
        self.most, self.fails = 0, fails

    @property
    def is_free(self) -> bool:
        return len(self.busy) < 2

    def wants(self, *, company: bool) -> bool:
        return True

    def start(self, stage: Stage) -> None:
        self.busy.append(stage.title)
        self.most = max(self.most, len(self.busy))

    def ended(self) -> Ended:
        title = self.busy.pop()
        return Ended([], {title: ValueError(title)}) if title in self.fails else Ended([title], {})


def test_a_crew_has_never_more_than_it_can_take_and_does_all():
    notes, crew = Notes(), Pair()
    do_all(stages(), notes, crew)
    assert sorted(notes.done) == sorted(NEEDS)
    assert crew.most == 2
    assert all(
        notes.begun.index(needed) < notes.begun.index(name) for name in NEEDS for needed in NEEDS[name]
    )


def test_a_crew_goes_on_past_a_failure():
    notes, crew = Notes(), Pair("c")
    do_all(stages(), notes, crew)
    assert sorted(notes.done) == ["a", "b", "d", "e", "f"]
    assert notes.left == {"g": "c"}


def test_options_of_another_engine_are_refused():
    with pytest.raises(UsageError, match="--address is for --engine ray"):
        Engine(address="auto")
    with pytest.raises(UsageError, match="--jobs is for --engine local"):
        Engine(name="ray", jobs=2)
    with pytest.raises(UsageError, match="--jobs 0"):
        Engine(jobs=0)
    with pytest.raises(UsageError, match="did you mean 'ray'"):
        Engine(name="rai")
    assert Engine.of(3) == Engine(jobs=3)


def test_what_only_waits_for_a_file_goes_on_without_it():
    """c waits for what a makes, and for a file of nobody; d waits for b, which is left as a fails."""
    made = {stage.name: stage for stage in stages(failing("a"), {"a": "", "b": "a", "c": "", "d": ""})}
    waiting = {"c": ("a", "nobody"), "d": ("b",)}
    listed = [replace(stage, after=waiting.get(name, ())) for name, stage in made.items()]
    notes = Notes()
    do_all(listed, notes)
    assert (notes.begun, notes.done) == (["a", "c", "d"], ["c", "d"])
    assert notes.left == {"b": "a"}
    agenda = Agenda(listed)
    assert agenda.take().name == "a"
    assert not agenda


def test_a_refusal_ends_a_run_and_is_a_failure_among_several():
    class Refusing(Notes):
        def begin(self, stage: Stage) -> bool:
            if stage.name == "a":
                raise ConfigError("other settings")
            return super().begin(stage)

    class OneRun(Refusing):
        ends_at_refusal = True

    among = Refusing()
    do_all(stages(), among)
    assert isinstance(among.failed["a"], ConfigError)
    assert sorted(among.done) == ["b", "f"]
    with pytest.raises(ConfigError):
        do_all(stages(), OneRun())


def test_what_is_missing_after_the_work_is_a_failure_of_its_stage():
    class Strict(Notes):
        def end(self, stage: Stage) -> None:
            if stage.name == "b":
                raise FileNotFoundError("b")
            super().end(stage)

    for crew in (None, Pair()):
        notes = Strict()
        do_all(stages(), notes, crew)
        assert sorted(notes.done) == ["a", "c"]
        assert list(notes.failed) == ["b"]
