"""`runtime graph`: writers and readers of keys, from the agents' declarations alone."""

from enum import StrEnum
from typing import Annotated

import typer

from runtime.agent.discovery import discover_with_sources
from runtime.agent.graph import graph_of, mermaid
from runtime.cli.graph_svg import svg
from runtime.cli.help import choices
from runtime.cli.options import Json
from runtime.cli.output import print_json


class GraphFormat(StrEnum):
    """How the graph is written."""

    MERMAID = "mermaid"
    SVG = "svg"


def graph(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="As for `runtime run`.")],
    form: Annotated[
        GraphFormat,
        typer.Option("--format", metavar=choices(GraphFormat), help="Text for Mermaid, or a picture."),
    ] = GraphFormat.MERMAID,
    as_json: Json = False,
) -> None:
    """Print the graph of agents and keys. Needs no database and runs no handler."""
    found = graph_of(*discover_with_sources(paths))
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(svg(found) if form is GraphFormat.SVG else mermaid(found), nl=False)
