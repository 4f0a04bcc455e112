"""The tools of an MCP server, called from a handler: each call is a step.

The Model Context Protocol is spoken by the official SDK, which is imported with the first call.
"""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import anyio

from runtime.agent.retry import LONGEST_SECONDS, Retry, is_number, short_repr
from runtime.agent.step_call import Step
from runtime.encoding.json import decode, encode
from runtime.errors import InvalidValue, RuntimeFault, ToolFailed
from runtime.extras import needing

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

RemoteServer: TypeAlias = "str | Sequence[str] | Client"
"""A URL of Streamable HTTP, a command with its arguments, or a client of the SDK that is open."""

IDEMPOTENCY_KEY: Final = "agent-runtime/idempotencyKey"
"""The entry of `_meta` in which a call carries the idempotency key of its step."""
_MAX_ERROR: Final = 2_000


class Stepping(Protocol):
    """What calls belong to: a context."""

    async def step(
        self, name: str, function: Any, /, *arguments: Any, key: str, returns: Any, retry: Retry | None
    ) -> Any:
        """Call a function and keep its result; see `Context.step`."""

    def step_blocking(
        self, name: str, function: Any, /, *arguments: Any, key: str, returns: Any, retry: Retry | None
    ) -> Any:
        """Call a plain function and keep its result; see `Context.step_blocking`."""


@dataclass(frozen=True, slots=True)
class RemoteTools:
    """The tools of one MCP server, for one handler; `context.mcp(…)` makes it.

    Attributes:
        steps: the context whose steps the calls are.
        server: where it is.
        headers: sent with each request to a URL.
        env: variables for a command, beside the few that every program needs.
        timeout: seconds that one call may take, with the connection that it opens.
    """

    steps: Stepping
    server: RemoteServer
    headers: Mapping[str, str]
    env: Mapping[str, str]
    timeout: float

    @classmethod
    def of(
        cls,
        steps: Stepping,
        server: RemoteServer,
        headers: Mapping[str, str] | None,
        env: Mapping[str, str] | None,
        timeout: float,
    ) -> "RemoteTools":
        """Check the arguments of `Context.mcp`.

        Raises:
            InvalidValue: one of them makes no sense.
        """
        is_url = isinstance(server, str)
        if isinstance(server, str) and (
            urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname
        ):
            raise InvalidValue(
                "context.mcp(…) takes the server's URL, such as https://host/mcp, its command as a list, such as "
                '["npx", "some-server"], or an open mcp.Client.'
            )
        if not is_url and isinstance(server, Sequence):
            if not server or not all(isinstance(each, str) for each in server):
                raise InvalidValue("The command of an MCP server is a list of texts, the program first.")
        elif not is_url and not hasattr(server, "call_tool"):
            raise InvalidValue(
                f"context.mcp(…) takes a URL, a command as a list or an open mcp.Client, not {short_repr(server)}."
            )
        if headers and not is_url:
            raise InvalidValue("context.mcp(…, headers=…) is for a server at a URL.")
        if env and (is_url or not isinstance(server, Sequence)):
            raise InvalidValue("context.mcp(…, env=…) is for a server that is a command.")
        if not (is_number(timeout) and 0 < timeout <= LONGEST_SECONDS):
            raise InvalidValue(
                f"context.mcp(…, timeout=…) is a number of seconds above 0, not {short_repr(timeout)}."
            )
        return cls(steps, server, dict(headers or {}), dict(env or {}), timeout)

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        returns: Any = Parameter.empty,
        retry: Retry | None = None,
    ) -> Any:
        """Call a tool, as a step: a later attempt of the delivery gets its result without calling it again.

        A process that dies between the tool's end and the moment its result is kept has lost it, and the tool is called
        again: `_meta` of the call has an idempotency key for that, under `agent-runtime/idempotencyKey`.

        Args:
            tool: its name.
            arguments: as its schema wants them.
            key: tells calls apart that run at the same time with the same arguments.
            returns: the type of the result; JSON data by default.
            retry: how often it is called within this attempt; once by default.

        Returns:
            Its structured content, where it has any; else its text, or the list of its parts where it has others.

        Raises:
            ToolFailed: the tool has failed, or the server could not be reached.
            InvalidValue: an argument has no JSON form, or the result is larger than a step may be.
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: the result could not be stored.
        """
        data = _checked(tool, arguments)
        return await self.steps.step(
            f"mcp.{tool}", partial(self._call, tool, data), key=_key(key, data), returns=returns, retry=retry
        )

    def call_blocking(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        returns: Any = Parameter.empty,
        retry: Retry | None = None,
    ) -> Any:
        """Do the same as `call` in a handler that is a plain function: it blocks its thread."""
        if not isinstance(self.server, str | Sequence):
            raise InvalidValue("An open mcp.Client belongs to its event loop: give a URL or a command here.")
        data = _checked(tool, arguments)

        def call(step: Step) -> Any:
            return anyio.run(self._call, tool, data, step)

        return self.steps.step_blocking(
            f"mcp.{tool}", call, key=_key(key, data), returns=returns, retry=retry
        )

    async def _call(self, tool: str, arguments: dict[str, Any], step: Step) -> Any:
        what = f"Tool {tool!r} of {self._place()}"
        meta: Any = {IDEMPOTENCY_KEY: step.idempotency_key}
        try:
            with anyio.fail_after(self.timeout):
                async with self._connected() as client:
                    result = await client.call_tool(tool, arguments, meta=meta)
        except RuntimeFault:
            raise
        except TimeoutError:
            raise ToolFailed(f"{what} has not answered within {self.timeout:g} s.") from None
        except Exception as error:  # noqa: BLE001 - whatever the SDK, a server or a command does
            # `from None`: errors of HTTP name the URL, whose query may hold a secret.
            raise ToolFailed(f"{what} could not be called: {_told(error)}") from None
        if result.is_error:
            raise ToolFailed(f"{what} has failed: {_texts(result)[:_MAX_ERROR] or 'it does not say why'}")
        return _value_of(result)

    @asynccontextmanager
    async def _connected(self) -> "AsyncIterator[Client]":
        with needing("context.mcp", "mcp"):
            from mcp import Client, StdioServerParameters
            from mcp.client.streamable_http import streamable_http_client
            from mcp.shared._httpx_utils import create_mcp_http_client
        if not isinstance(self.server, str | Sequence):
            yield self.server
            return
        async with AsyncExitStack() as stack:
            if isinstance(self.server, str):
                http = await stack.enter_async_context(create_mcp_http_client(dict(self.headers)))
                client = Client(streamable_http_client(self.server, http_client=http))
            else:
                command, *arguments = self.server
                client = Client(StdioServerParameters(command=command, args=arguments, env=dict(self.env)))
            yield await stack.enter_async_context(client)

    def _place(self) -> str:
        if isinstance(self.server, str):
            parts = urlsplit(self.server)
            return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        # The arguments of a command may hold a secret.
        return os.path.basename(self.server[0]) if isinstance(self.server, Sequence) else "the MCP server"


def _checked(tool: object, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(tool, str) or not tool:
        raise InvalidValue(f"The name of a tool is a text, not {short_repr(tool)}.")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise InvalidValue(
            f"The arguments of tool {tool!r:.80} are a mapping of names to values, not {short_repr(arguments)}."
        )
    encode(dict(arguments or {}))
    return dict(arguments or {})


def _key(key: str | None, arguments: dict[str, Any]) -> str:
    """Return what tells a step from those that call the same tool at the same time."""
    return sha256(encode(arguments).encode()).hexdigest()[:16] if key is None else key


def _told(error: BaseException) -> str:
    """Return what went wrong, in words without a URL: the first error of a group, by its kind."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    from mcp import MCPError

    if isinstance(error, MCPError):
        return str(error)[:_MAX_ERROR]
    status = getattr(getattr(error, "response", None), "status_code", None)
    return type(error).__name__ if status is None else f"HTTP {status}"


def _texts(result: "CallToolResult") -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


def _value_of(result: "CallToolResult") -> Any:
    if (structured := result.structured_content) is not None:
        # The SDK wraps what is no object, and says so only in the tool's schema: the text is then that of the value.
        is_wrapped = structured.keys() == {"result"} and _decoded(_texts(result)) != structured
        return structured["result"] if is_wrapped else structured
    if all(part.type == "text" for part in result.content):
        return _texts(result)
    return [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]


def _decoded(text: str) -> Any:
    try:
        return decode(text)
    except ValueError:
        return None


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)
