"""Who does the stages of a run: this process, several of this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, cast, get_args

from scantling.errors import UsageError, did_you_mean

if TYPE_CHECKING:  # so that a command that is refused loads nothing heavy
    from scantling.run.context import Workplace
    from scantling.run.engines.schedule import Records
    from scantling.run.engines.shared import SharedRecords
    from scantling.run.engines.shared_folder import SharedFolder
    from scantling.run.stage import Stage

W = TypeVar("W", bound="Workplace")
EngineName: TypeAlias = Literal["local", "ray", "shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Who does the stages.

    Attributes:
        name: `local`, processes of this machine; `ray`, tasks of a Ray cluster; `shared`, this process and all others
            that are given the same command, on any machines that see the run folder.
        jobs: Stages done side by side on this machine.
        address: Of a Ray cluster; None starts Ray on this machine, or joins the cluster it belongs to.
        patience: Seconds after which a process on another machine is taken for dead that gave no sign of life; None:
            those of `leases.py`, long enough for a network folder.
        launch: Of `shared`: what the processes have in common that are begun together, such as an array of jobs; None:
            whoever comes while others work belongs to them.
        gpus: Of `ray`: how many of one machine a training takes, with as many processes.
    """

    name: EngineName = "local"
    jobs: int = 1
    address: str | None = None
    patience: float | None = None
    launch: str | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        """Refuse options of another engine.

        Raises:
            UsageError: `address` without Ray, `jobs` below 1 or for another engine than `local`, or no known engine.
        """
        if self.name not in get_args(EngineName):
            raise UsageError(
                f"there is no engine {self.name!r}{did_you_mean(self.name, get_args(EngineName))}"
            )
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected a whole number from 1 on")
        if self.gpus < 1 or (self.gpus > 1 and self.name != "ray"):
            hint = "On one machine several processes train together with `scantling train ... --gpus N`."
            raise UsageError(f"gpus={self.gpus}: several GPUs of one stage are for --engine ray", hint=hint)
        if self.name != "ray" and self.address is not None:
            raise UsageError(
                "--address is for --engine ray", hint=f"Add --engine ray --address {self.address}."
            )
        if self.name == "ray" and self.jobs > 1:
            hint = "Leave --jobs out: Ray does as many stages at a time as its processors and GPUs allow."
            raise UsageError("--jobs is for --engine local", hint=hint)
        if self.name == "shared" and self.jobs > 1:
            hint = "Leave --jobs out, and give the same command as often as stages are to be done at a time."
            raise UsageError("--jobs is for --engine local", hint=hint)

    def unshared(self, verb: str) -> Engine:
        """The engine, for a verb that has no folder which several processes could share.

        Raises:
            UsageError: It is `shared`.
        """
        if self.name == "shared":
            hint = "--jobs, and --engine ray, do the parts of it side by side."
            raise UsageError(
                f"--engine shared is for run, train, suite and ablate, not for {verb}", hint=hint
            )
        return self

    def check_overwrite(self, *, overwrite: bool) -> None:
        """Refuse to start over where others may work.

        Raises:
            UsageError: `overwrite` with the engine `shared`.
        """
        if self.name == "shared" and overwrite:
            hint = "Remove the folder, or give another --out."
            raise UsageError("--overwrite does not go with --engine shared: others may work there", hint=hint)

    @classmethod
    def of(cls, jobs: int | Engine) -> Engine:
        """The engine that a number of stages side by side stands for."""
        return jobs if isinstance(jobs, Engine) else cls(jobs=jobs)


ONE_AFTER_THE_OTHER = Engine()


def do_with(engine: Engine, context: W, records: Records, build: Callable[[W], Sequence[Stage]]) -> None:
    """Do all stages.

    Args:
        engine: Who does them.
        context: Where they are done, in the only process that does so.
        records: What is done already, and where it is written down.
        build: Lists the stages, in an order in which they can be done; a function of a module.

    Raises:
        UsageError: The engine is not installed or cannot be reached.
        Interrupted: A signal arrived; what trained has saved its state.
        ScantlingError: A stage cannot be begun. What a stage raised is noted.
    """
    if engine.name == "ray":
        from scantling.run.engines.ray import do_on_ray
        from scantling.run.leases import PATIENCE_SECONDS

        patience = engine.patience or PATIENCE_SECONDS
        do_on_ray(context, records, build, engine.address, patience=patience, gpus=engine.gpus)
    elif engine.name == "shared":
        from scantling.run.engines.shared import do_shared

        do_shared(context, cast("SharedFolder | SharedRecords", records), build)
    elif engine.jobs > 1:
        from scantling.run.engines.local import do_side_by_side

        do_side_by_side(context, records, build, engine.jobs)
    else:
        from scantling.run.engines.schedule import do_all

        do_all(build(context), records)


def check_engine(engine: Engine, context: Workplace) -> None:
    """Refuse to share out the stages of a run whose processes do each stage together.

    Raises:
        UsageError: There are several processes already, or the engine cannot be used.
    """
    if engine != ONE_AFTER_THE_OTHER and context.processes.world > 1:
        option = f"--engine {engine.name}" if engine.name != "local" else "--jobs"
        raise UsageError(f"{option} does not go with torchrun, whose processes do each stage together")
    require_installed(engine)


def require_installed(engine: Engine) -> None:
    """Make sure that an engine can be used here.

    Raises:
        UsageError: It is not installed.
    """
    if engine.name == "ray":
        from scantling.run.engines.ray import require_ray

        require_ray()
