"""The listeners of each topic: the channels joined to it. A private and a public topic of one name are two."""

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from runtime.local.gateway.frames import Version


class TopicListener(Protocol):
    """One joined channel."""

    @property
    def version(self) -> Version:
        """The protocol version of its socket."""

    def push(self, frame: str | bytes) -> None:
        """Send a frame as it is."""

    def has_replayed(self, message: str) -> bool:
        """Return whether this message of the database was replayed to it already, when it joined."""


class Hub:
    """The listeners of all topics."""

    def __init__(self) -> None:
        self._listeners: defaultdict[tuple[str, bool], set[TopicListener]] = defaultdict(set)

    def add(self, topic: str, private: bool, listener: TopicListener) -> None:
        """Add a listener to this topic."""
        self._listeners[topic, private].add(listener)

    def remove(self, topic: str, private: bool, listener: TopicListener) -> None:
        """Remove a listener from this topic."""
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
        """Send each listener the frame in its protocol version.

        Args:
            topic: the topic with its prefix, as in the frame.
            private: which of the two topics of that name.
            write: makes the frame, once for each version needed; None means that the version cannot carry it.
            except_for: the listener to leave out.
            message: the id of the message's row, if it came out of the database.
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
