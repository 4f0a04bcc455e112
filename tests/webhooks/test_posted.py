"""Is whatever a sender posts to `runtime.asgi` stored, or refused as its own fault?"""

import time

import anyio
import httpx

from runtime.agent.source import Source
from runtime.asgi import WebhookApp
from runtime.client.stream import connect
from runtime.settings import Settings
from runtime.webhooks.signatures import new_secret, read_secret, sign

SECRET = new_secret()


async def posted(url: str, bodies: dict[str, bytes]) -> tuple[dict[str, int], list[str]]:
    """The status of each body, signed by its sender, and the keys of what was stored."""
    settings = Settings.load(database_url=url, supabase_url=None, supabase_key=None)
    app = WebhookApp(
        sources=[Source("shop", "shop.{event}", max_bytes=2**20)],
        settings=settings,
        variables={"SHOP_WEBHOOK_SECRET": SECRET},
    )
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")
    statuses = {}
    async with client, connect(settings) as stream:
        for name, body in bodies.items():
            signed = sign([read_secret(SECRET)], name, int(time.time()), body)
            headers = {"content-type": "application/json", **signed}
            statuses[name] = (await client.post("/webhooks/shop", content=body, headers=headers)).status_code
        await app.close()
        return statuses, [message.key for message in await stream.read("shop.>")]


def test_r1_r4_a_body_that_no_row_can_hold_is_refused_and_holds_up_no_other(database: str) -> None:
    refused = {
        "digits": b'{"type": "paid", "n": ' + b"9" * 5000 + b"}",
        "exponent": b'{"type": "paid", "n": 1e131071}',
        "deep": b'{"type": "paid", "n": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        "not a number": b'{"type": "paid", "n": NaN}',
        "nul": b'{"type": "paid", "n": "\\u0000"}',
        "surrogate": b'{"type": "paid", "n": "\\ud800"}',
        "no text": b'{"type": "paid", "n": "\xff"}',
        "large": b'{"type": "paid", "n": "' + b"x" * 2**20 + b'"}',
    }
    statuses, keys = anyio.run(posted, database, {**refused, "good": b'{"type": "paid", "n": 1}'})
    assert statuses.pop("good") == 200
    assert statuses.pop("large") == 413
    assert set(statuses.values()) <= {400, 422}, statuses
    assert keys == ["shop.paid"]
