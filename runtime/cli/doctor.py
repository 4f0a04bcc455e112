"""`runtime doctor`: checks the whole set-up.

Exit codes: 0 nothing is wrong, warnings included; 1 something is, and its cure is told.
"""

import anyio
import typer
from rich.text import Text

from runtime.cli.checks.examination import examine
from runtime.cli.checks.finding import Finding, Verdict
from runtime.cli.options import Json
from runtime.cli.output import out, print_json, start_logs
from runtime.settings import Settings

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "bold red", Verdict.SKIPPED: "dim"}


def doctor(
    as_json: Json = False,
) -> None:
    """Check the set-up from the key to the last policy, send one row all the way round, and say what cures what."""
    settings = Settings.find()
    start_logs("error", as_json=as_json)
    findings = anyio.run(_examine, settings, as_json)
    if any(finding.verdict is Verdict.FAULT for finding in findings):
        raise typer.Exit(1)


async def _examine(settings: Settings, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in examine(settings):
        findings.append(finding)
        if as_json:
            print_json(finding.as_dict())
        else:
            _print(finding)
    return findings


def _print(finding: Finding) -> None:
    style = _STYLES[finding.verdict]
    out.print(
        Text.assemble((f"{finding.verdict:<8}", style), (f"{finding.check:<17}", "bold"), finding.text),
        soft_wrap=True,
    )
    if finding.cure:
        out.print(Text(f"{'':<25}{finding.cure}", style=style), soft_wrap=True)
