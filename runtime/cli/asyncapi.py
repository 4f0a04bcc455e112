"""`runtime asyncapi`: keys, agents and schemas as an AsyncAPI 3 document."""

from typing import Annotated

import typer

from runtime.agent.asyncapi import asyncapi_of
from runtime.agent.discovery import discover_with_sources
from runtime.cli.options import Json
from runtime.cli.output import print_json


def asyncapi(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="As for `runtime run`.")],
    title: Annotated[str, typer.Option(help="The application's name in the document.")] = "Agents",
    version: Annotated[str, typer.Option(help="The application's version in the document.")] = "1.0.0",
    as_json: Json = False,
) -> None:
    """Print the AsyncAPI document of the agents, indented, or on one line with --json.

    Needs no database and runs no handler.
    """
    agents, sources = discover_with_sources(paths)
    document = asyncapi_of(agents, sources, title=title, version=version)
    print_json(document, indent=None if as_json else 2)
