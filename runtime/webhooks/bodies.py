"""How much of a request's body is read? Up to a limit, in time; the rest is left where it is."""

import anyio
from starlette.requests import ClientDisconnect, Request

_SECONDS = 10.0


class BodyRefused(Exception):
    """The body was not read to its end.

    Attributes:
        status: the HTTP status that says why.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the request's body; never more of it is kept than the limit.

    Raises:
        BodyRefused: it is larger (413), comes too slowly (408), or its sender hung up (400).
    """
    body = bytearray()
    try:
        with anyio.fail_after(_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyRefused(413, f"The body is larger than {max_bytes} bytes.")
    except TimeoutError:
        raise BodyRefused(408, f"The body did not come within {_SECONDS:.0f} seconds.") from None
    except ClientDisconnect:
        raise BodyRefused(400, "The sender hung up.") from None
    return bytes(body)
