"""`runtime init`: the migrations and a first agent, in a Supabase project or an empty folder."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.output import err, out, print_json
from runtime.cli.scaffold.project import AGENT, CONFIG, FileOutcome, ProjectPlan, plan_project

_LABELS = {
    FileOutcome.WRITTEN: "written",
    FileOutcome.UNCHANGED: "unchanged",
    FileOutcome.EDITED: "left as it is",
}
_STYLES = {FileOutcome.WRITTEN: "green", FileOutcome.UNCHANGED: "dim", FileOutcome.EDITED: "yellow"}


def init(
    folder: Annotated[
        Path, typer.Argument(help="A Supabase project's folder, or one to begin in.", show_default="here")
    ] = Path(),
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put the migrations and a first agent into a project, or newer migrations into one that has some.

    Files that are there already are never written to.
    """
    plan = plan_project(folder)
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
    for step in plan.steps:
        if step.fate is not FileOutcome.UNCHANGED:
            label = (
                "would be written" if is_dry_run and step.fate is FileOutcome.WRITTEN else _LABELS[step.fate]
            )
            out.print(f"{label:>16}  {step.path.as_posix()}", style=_STYLES[step.fate])
    if unchanged := plan.of(FileOutcome.UNCHANGED):
        out.print(f"{_LABELS[FileOutcome.UNCHANGED]:>16}  {len(unchanged)} migrations", style="dim")
    if edited := plan.of(FileOutcome.EDITED):
        err.print(
            f"{len(edited)} migrations differ from this release's and were left as they are: somebody edited them. To "
            "have one as released, delete the file and run this again.",
            style="yellow",
            soft_wrap=True,
        )
    err.print("\nNext:", style="dim")
    for line in _next(plan):
        err.print(f"  {line}", style="dim", soft_wrap=True)


def _next(plan: ProjectPlan) -> list[str]:
    """The commands that come next, in order."""
    push = "supabase db push --include-all" if plan.is_out_of_order else "supabase db push"
    agents = AGENT.parent.as_posix()
    lines = [f"{push}    # into your linked project; `supabase migration up` for `supabase start`"]
    if plan.is_out_of_order:
        lines[0] += "; your own later migrations do not depend on these"
    if any(step.path == CONFIG for step in plan.steps):
        lines.insert(0, "supabase link    # to a project of yours; not needed for `runtime dev`")
    return [*lines, f"runtime dev {agents}"]
