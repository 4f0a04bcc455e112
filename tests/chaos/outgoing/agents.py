"""An agent whose handler is a URL."""

import os

from runtime import Agent
from tests.chaos.agents import RETRY
from tests.chaos.outgoing.driver import PORT, SECRET

outbox = Agent("outbox")
outbox.post(
    "outgoing.order",
    to=f"http://127.0.0.1:{os.environ[PORT]}/",
    secret=SECRET,
    emits="outgoing.answer",
    retry=RETRY,
    timeout=2,
)
