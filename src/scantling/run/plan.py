"""What a run would do, before it does anything: every stage with how it stands, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from scantling.run.stage import Stage, StageState


class PlannedAction(StrEnum):
    """What would be done with a stage.

    `keep` it, `do` it for the first time, `continue` what was begun, `redo` it; or `refuse`: stop with an error there.
    """

    KEEP = "keep"
    DO = "do"
    CONTINUE = "continue"
    REDO = "redo"
    REFUSE = "refuse"


_ACTIONS = {
    StageState.KEPT: (PlannedAction.KEEP, "done and unchanged"),
    StageState.NEW: (PlannedAction.DO, "not done yet"),
    StageState.BEGUN: (PlannedAction.CONTINUE, "begun and not finished"),
    StageState.CHANGED: (PlannedAction.REDO, ""),
    StageState.REFUSED: (PlannedAction.REFUSE, ""),
}


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a plan.

    Attributes:
        title: Of the stage.
        action: What would be done with it.
        reasons: Why, each a phrase.
        after: Titles of the stages that must be done just before it and are not done yet.
    """

    title: str
    action: PlannedAction
    reasons: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Attributes:
        out: The run folder.
        stages: In the order in which one process does them.
    """

    out: Path
    stages: tuple[PlannedStage, ...]

    def to_text(self) -> str:
        """A line for each stage, further reasons under it."""
        width = max(len(stage.title) for stage in self.stages)
        lines = []
        for stage in self.stages:
            first, *others = stage.reasons
            lines.append(f"{stage.action:<8}  {stage.title:<{width}}  {first}")
            lines += [f"{'':<8}  {'':<{width}}  {other}" for other in others]
        counts = {action: sum(stage.action is action for stage in self.stages) for action in PlannedAction}
        told = ", ".join(f"{count} to {action}" for action, count in counts.items() if count)
        return "\n".join([*lines, "", f"{self.out}: {told}"])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        stages = [
            {
                "stage": stage.title,
                "action": str(stage.action),
                "reasons": list(stage.reasons),
                "after": list(stage.after),
            }
            for stage in self.stages
        ]
        return {"out": str(self.out), "stages": stages}


def plan_of(stages: Sequence[Stage], root: Path, *, fresh: bool = False) -> Plan:
    """What would be done with each stage.

    Args:
        stages: Of a run, each after those whose files it needs.
        root: The run folder; need not exist. Nothing is written.
        fresh: As if the folder were empty.
    """
    makers, planned = makers_of(stages), dict[str, PlannedStage]()
    before: dict[str, set[str]] = {}  # of each stage, all that come before it
    for stage in stages:
        direct = list(dict.fromkeys(makers[need] for need in stage.needs if need in makers))
        implied = {title for other in direct for title in before[other]}
        before[stage.title] = implied | set(direct)
        undone = [title for title in direct if planned[title].action is not PlannedAction.KEEP]
        after = tuple(title for title in undone if title not in implied)
        planned[stage.title] = _planned(stage, root, after, fresh=fresh)
    return Plan(root, tuple(planned.values()))


def makers_of(stages: Iterable[Stage]) -> Mapping[str, str]:
    """The title of the stage that leaves each file."""
    return {file: stage.title for stage in stages for file in stage.outputs}


def _planned(stage: Stage, root: Path, after: tuple[str, ...], *, fresh: bool) -> PlannedStage:
    if fresh:
        return PlannedStage(stage.title, PlannedAction.DO, ("the run starts over",), after)
    if after:
        reason = f"after {', '.join(after)}"
        if not stage.was_begun(root):
            return PlannedStage(stage.title, PlannedAction.DO, (reason,), after)
        unless = f"{reason}; kept if nothing that it is computed from comes out differently"
        return PlannedStage(stage.title, PlannedAction.REDO, (unless,), after)
    if missing := stage.missing(root):
        reasons = tuple(f"{name}: there is no such file" for name in missing)
        return PlannedStage(stage.title, PlannedAction.REFUSE, reasons)
    state, differences = stage.standing(root, stage.inputs())
    action, reason = _ACTIONS[state]
    return PlannedStage(stage.title, action, differences or (reason,))
