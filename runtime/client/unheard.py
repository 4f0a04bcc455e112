"""Messages whose keys no handler listens to, told once for each key."""

import logging
from collections.abc import Iterable, Sequence

from runtime.message import Draft
from runtime.store import Sent

# Keys may hold ids, such as order.4711: a process does not tell of each for ever.
_MOST = 100


class UnheardKeys:
    """Logs the first message under each key that no handler listens to.

    Args:
        log: where to log.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[str] = set()

    def note_sent(self, drafts: Sequence[Draft], sent: Sequence[Sent]) -> None:
        """Warn of messages that were sent, and that no handler gets."""
        for draft, one in zip(drafts, sent, strict=True):
            if one.unheard and self._is_news(draft.key):
                self._log.warning(
                    "no handler listens to %s: message %d is stored, and no agent gets it. Is the key spelled as in an "
                    "@agent.on(…), and has that agent run once? `runtime subscriptions` lists what listens. An agent "
                    'that comes later gets it with start="earliest", or by `runtime replay`.',
                    draft.key,
                    one.id,
                )

    def note_emitted(self, emitted: Sequence[tuple[str, Sequence[str]]], keys: Iterable[str]) -> None:
        """Log which handler emits under keys that no handler listens to.

        It is no warning: a result may be for people and programs that read it.

        Args:
            emitted: names of handlers, each with the messages it emitted, as JSON.
            keys: the keys.
        """
        for key in keys:
            if self._is_news(key):
                head = f'{{"key":"{key}"'
                names = {name for name, emits in emitted if any(emit.startswith(head) for emit in emits)}
                self._log.info(
                    "no handler listens to %s, which %s emits: its messages stay in the stream. An agent that comes "
                    'later gets them with start="earliest", or by `runtime replay`.',
                    key,
                    " and ".join(sorted(names)) or "a handler",
                )

    def _is_news(self, key: str) -> bool:
        if key in self._told or len(self._told) >= _MOST:
            return False
        self._told.add(key)
        return True
