"""`runtime mcp`: agents as tools of language models, over the standard streams."""

from typing import Annotated

import anyio
import typer
from mcp.server.stdio import stdio_server

from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import begin_log, export_telemetry, logs_are_json, start_logs
from runtime.client.mcp.server import WAIT_SECONDS, StreamServer
from runtime.settings import Settings


def mcp(
    allow_writes: Annotated[
        bool, typer.Option("--allow-writes", help="Offer tools that send messages and redrive dead letters.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, max=3600, help="How long a call waits before it is pending."
        ),
    ] = WAIT_SECONDS,
    as_json: Json = False,
) -> None:
    """Serve MCP on standard input and output: a client, such as an editor, starts this command itself.

    Handlers that agents have declared with `@agent.on(…, tool="name")` are tools; the agents run elsewhere. Operators'
    tools look at the stream: stream_search, stream_trace, stream_backlog, stream_dead_letters. The log goes to stderr.
    """
    begin_log(as_json=as_json)
    settings = find_settings(mcp_writes=allow_writes or None)
    start_logs(settings.log_level, as_json=as_json or logs_are_json(settings.log_format))
    if settings.telemetry:
        export_telemetry()
    anyio.run(_serve, settings, wait)


async def _serve(settings: Settings, wait: float) -> None:
    server = StreamServer(settings, wait_seconds=wait).build()
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())
