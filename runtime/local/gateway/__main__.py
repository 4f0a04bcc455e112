"""Run the gateway: `python -m runtime.local.gateway`, configured by `GATEWAY_…`."""

import logging

import uvicorn

from runtime.local.gateway.app import make_app
from runtime.local.gateway.request_timeouts import RequestTimeoutProtocol
from runtime.local.gateway.settings import GatewaySettings


def main() -> None:
    """Serve until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = GatewaySettings()  # type: ignore[call-arg]
    uvicorn.run(
        make_app(settings),
        host=settings.host,
        port=settings.port,
        # Its lines would contain query strings, and those contain keys.
        access_log=False,
        log_level="warning",
        http=RequestTimeoutProtocol,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        ws_max_size=5_000_000,
        # The real API gateway keeps an idle connection that long.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
