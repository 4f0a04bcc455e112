"""`runtime init`: the migrations and agents to begin with, in a Supabase project or an empty folder."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.options import Json
from runtime.cli.output import err, out, print_json
from runtime.cli.scaffold.project import (
    AGENTS,
    CONFIG,
    MIGRATIONS,
    FileOutcome,
    FileStep,
    ProjectPlan,
    Template,
    plan_project,
)
from runtime.cli.times import counted

_LABELS = {
    FileOutcome.WRITTEN: "written",
    FileOutcome.UNCHANGED: "unchanged",
    FileOutcome.EDITED: "left as it is",
}
# More migrations than an upgrade brings are told by their number.
_NAMED_MIGRATIONS = 5
_STYLES = {FileOutcome.WRITTEN: "green", FileOutcome.UNCHANGED: "dim", FileOutcome.EDITED: "yellow"}


def init(
    folder: Annotated[
        Path, typer.Argument(help="A Supabase project's folder, or one to begin in.", show_default="here")
    ] = Path(),
    template: Annotated[
        Template | None,
        typer.Option(
            help="The agents to begin with: one that greets, or a support desk of five agents with its tests.",
            show_default="starter, where there are no agents yet",
        ),
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the migrations and agents to begin with into a project, or newer migrations into one that has some.

    Files that are there already are never written to.
    """
    plan = plan_project(folder, template)
    if not is_dry_run:
        plan.carry_out()
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "dry_run": is_dry_run,
                **{fate.value: [step.path.as_posix() for step in plan.of(fate)] for fate in FileOutcome},
                "next": _next(plan),
            }
        )
        return
    _print(plan, is_dry_run)


def _print(plan: ProjectPlan, is_dry_run: bool) -> None:
    for label, name, style in _lines(plan, is_dry_run):
        out.print(f"{label:>16}  {name}", style=style)
    edited = plan.of(FileOutcome.EDITED)
    if migrations := [step for step in edited if _is_migration(step)]:
        err.print(
            f"Somebody edited {counted(len(migrations), 'migration')} of this release; what is there was left as it "
            "is. To have one as released, delete the file and run this again.",
            style="yellow",
            soft_wrap=True,
        )
    if len(edited) > len(migrations):
        err.print(
            "Files of the template that were there already were left as they are. A template fits best into an "
            "empty folder.",
            style="yellow",
            soft_wrap=True,
        )
    err.print("\nNext:", style="dim")
    for line in _next(plan):
        err.print(f"  {line}", style="dim", soft_wrap=True)


def _lines(plan: ProjectPlan, is_dry_run: bool) -> Iterator[tuple[str, str, str]]:
    """Yield a label, a name and a style for each line; many migrations of one outcome share a line."""
    for fate in FileOutcome:
        label = "would be written" if is_dry_run and fate is FileOutcome.WRITTEN else _LABELS[fate]
        steps = plan.of(fate)
        migrations = [step for step in steps if _is_migration(step)]
        are_named = fate is FileOutcome.EDITED or len(migrations) <= _NAMED_MIGRATIONS
        for step in steps:
            if not _is_migration(step) or are_named:
                yield label, step.path.as_posix(), _STYLES[fate]
            elif step is migrations[0]:
                yield label, f"{MIGRATIONS.as_posix()}/ ({len(migrations)} migrations)", _STYLES[fate]


def _is_migration(step: FileStep) -> bool:
    return step.path.parent == MIGRATIONS


def _next(plan: ProjectPlan) -> list[str]:
    """The commands that come next, in order."""
    push = "supabase db push --include-all" if plan.is_out_of_order else "supabase db push"
    push += "    # into your linked project; `supabase migration up` for `supabase start`"
    if plan.is_out_of_order:
        push += "; your own later migrations do not depend on these"
    lines = [f"runtime dev {AGENTS.as_posix()}    # on this machine; it needs no project", push]
    if any(step.path == CONFIG for step in plan.steps):
        lines.insert(1, "supabase link    # to a project of yours, when you have one")
    if any(step.path.parts[0] == "tests" for step in plan.steps):
        lines.insert(0, "pytest    # the template's own tests; `pip install pytest` brings it")
    if plan.folder != Path():
        lines.insert(0, f"cd {shlex.quote(str(plan.folder))}")
    return lines
