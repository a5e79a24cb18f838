"""The command `scantling` and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from scantling import __version__
from scantling.cli import (
    audit_verbs,
    compare_verb,
    data_verbs,
    dataset_verbs,
    doctor_verb,
    ensemble_verb,
    launch_verbs,
    pretrain_verbs,
    recipe_verbs,
    refine_verbs,
    result_verbs,
    run_verbs,
    semantic_verbs,
    shard_verbs,
    status_verb,
    suite_verb,
    tune_verbs,
)

app = typer.Typer(
    name="scantling",
    help="The best detector out of few labelled images, and better predictions from any detector.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set the options of the command itself."""


app.command("run")(run_verbs.run)
app.command("demo")(run_verbs.demo)
app.command("pretrain")(pretrain_verbs.pretrain)
app.command("train")(run_verbs.train)
app.command("ablate")(run_verbs.ablate)
app.command("suite")(suite_verb.suite)
app.command("status")(status_verb.status)
app.command("predict")(result_verbs.predict)
app.command("merge")(shard_verbs.merge)
app.command("evaluate")(result_verbs.evaluate)
app.command("compare")(compare_verb.compare)
app.command("ensemble")(ensemble_verb.ensemble)
app.command("fuse-semantic")(semantic_verbs.fuse_semantic)
app.command("tune")(tune_verbs.tune)
app.command("tune-semantic")(semantic_verbs.tune_semantic)
app.command("suppress")(tune_verbs.suppress)
app.command("eliminate")(tune_verbs.eliminate)
app.command("submission")(result_verbs.submission)
app.command("report")(result_verbs.report)
app.command("check")(dataset_verbs.check)
app.command("convert")(dataset_verbs.convert)
app.command("split")(dataset_verbs.split)
app.command("synth")(data_verbs.synth)
app.command("import-weights")(data_verbs.import_weights)
app.command("audit")(audit_verbs.audit)
app.command("repair")(audit_verbs.repair)
app.command("doctor")(doctor_verb.doctor)
app.add_typer(launch_verbs.launch, name="launch")
app.add_typer(recipe_verbs.recipes, name="recipes")
app.add_typer(refine_verbs.refine, name="refine")
