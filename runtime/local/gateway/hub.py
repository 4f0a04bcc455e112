"""The listeners of each topic: the channels joined to it. A private and a public topic of one name are two."""

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from runtime.local.gateway.frames import Version


class TopicListener(Protocol):
    """One joined channel."""

    @property
    def version(self) -> Version:
        """The protocol its socket speaks."""

    def push(self, frame: str | bytes) -> None:
        """Send a frame as it is."""

    def has_replayed(self, message: str) -> bool:
        """Whether it was told this message of the database already, when it joined."""


class Hub:
    """The listeners of all topics."""

    def __init__(self) -> None:
        self._listeners: defaultdict[tuple[str, bool], set[TopicListener]] = defaultdict(set)

    def add(self, topic: str, private: bool, listener: TopicListener) -> None:
        """Let the listener hear this topic."""
        self._listeners[topic, private].add(listener)

    def remove(self, topic: str, private: bool, listener: TopicListener) -> None:
        """Let it hear no more."""
        listeners = self._listeners.get((topic, private))
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._listeners[topic, private]

    def publish(
        self,
        topic: str,
        private: bool,
        write: Callable[[Version], str | bytes | None],
        except_for: TopicListener | None = None,
        message: str | None = None,
    ) -> None:
        """Send each listener the frame in the version it speaks.

        Args:
            topic: with its prefix, as it stands in the frame.
            private: which of the two topics of that name.
            write: makes the frame, once for each version needed; None means that version cannot say it.
            except_for: who is left out.
            message: the id of the row that it is, if it came out of the database.
        """
        frames: dict[Version, str | bytes | None] = {}
        for listener in list(self._listeners.get((topic, private), ())):
            if listener is except_for or (message is not None and listener.has_replayed(message)):
                continue
            version = listener.version
            if version not in frames:
                frames[version] = write(version)
            frame = frames[version]
            if frame is not None:
                listener.push(frame)
