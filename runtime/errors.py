"""Every error of the package, in one tree.

RuntimeFault                    the root: catch this to catch everything the package raises
├── SettingsError               a setting is missing or makes no sense
├── DeclarationError            an agent or a handler is declared wrongly
│   ├── DiscoveryError          a module or folder of agents cannot be loaded
│   ├── NotAwaited              a handler forgot an `await`, or wrote one too many
│   └── WrongCall               a method of the stream or of a context is called with arguments that it does not take
├── LifespanFailed              no agent of a worker could start, or go on
├── InvalidKey                  not a key or a pattern
├── InvalidValue                a value cannot be stored as JSON, or an argument makes no sense
├── InvalidPayload              a message's value does not fit its handler's annotation
├── StoreError                  the store refused or could not be reached
│   ├── StoreUnavailable        not reached, or no answer: try again
│   ├── Unauthorized            a wrong key, or one without the rights
│   ├── MigrationMissing        the database lacks the runtime's schema, or has another version of it
│   └── Refused                 the database refused the request itself
│       ├── Duplicate           the dedup_key was used before
│       ├── NobodyListens       no handler listens to the key, and the sender required one
│       └── Blocked             a proxy or firewall in front of the API refused
├── BadSignature                the signature of a webhook or a link is wrong or too old
├── PostFailed                  a webhook's target did not accept a message
├── AskError                    a request failed
│   ├── AskTimeout              no answer came in time; a late one is kept
│   ├── AskFailed               its handler failed for good
│   └── NobodyAnswers           no handler can answer it
├── LeaseLost                   a step, a text or a transaction was not kept: another worker has the delivery
├── TextBroken                  a text that is followed ends within
├── ToolFailed                  a tool of an MCP server has failed, or could not be called
├── WakeupError                 a wake-up path failed until an operator repairs it
└── LocalStackError             a command of the local stack failed
"""

from collections.abc import Iterable
from typing import Literal


class RuntimeFault(Exception):
    """The root of every error this package raises."""


class SettingsError(RuntimeFault):
    """A setting is missing or makes no sense; the message names the variable and a possible value."""


class DeclarationError(RuntimeFault):
    """An agent or a handler is declared wrongly; raised when the module is imported, not when it runs."""


class DiscoveryError(DeclarationError):
    """A module or folder named on the command line holds no agents, or cannot be imported."""


class NotAwaited(DeclarationError):
    """A handler returned an awaitable, or awaited a plain value; raised when the handler runs.

    Every attempt would end the same way, so the delivery becomes a dead letter at once.
    """


class WrongCall(DeclarationError):
    """A call with arguments that do not exist, such as one of a method of a handler's context.

    As with `NotAwaited`, the delivery of a handler that makes such a call becomes a dead letter at once.
    """


class LifespanFailed(RuntimeFault):
    """No agent of a worker could start or go on, since each lifespan failed; the message lists the errors."""


class InvalidKey(RuntimeFault, ValueError):
    """Not a key or a pattern; the message says what one looks like."""


class InvalidValue(RuntimeFault, ValueError):
    """A value cannot be stored: no JSON, NaN, a NUL character, a lone surrogate, or too large; or an argument of a call
    is of another type, or out of its range."""


class InvalidPayload(RuntimeFault, ValueError):
    """A message's value does not fit its handler's annotation; the delivery becomes a dead letter at once.

    The text says where and how, and never repeats the value: it may hold a secret.
    """


Nature = Literal[
    "away", "locked", "slow", "garbled", "large", "blocked", "refused", "forbidden", "missing", "setup", "credentials",
]  # fmt: skip
"""The kinds of faults of a store; `runtime.store.sqlstates` says what each means."""


class StoreError(RuntimeFault):
    """The store refused, or could not be reached.

    Attributes:
        code: the SQLSTATE, or PostgREST's `PGRST…` code, if there was one.
        nature: the kind of fault.
        status: the HTTP status of an answer that came in the store's place, if one came.
    """

    nature: Nature = "away"
    status: int | None = None

    def __init__(self, message: str, *, code: str | None = None, nature: Nature | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.nature = nature or self.nature

    @property
    def cause(self) -> str:
        """What tells this trouble from another of the same outage; the text may differ each time."""
        return f"{self.nature} {self.code} {self.status}"


class StoreUnavailable(StoreError):
    """The store was not reached, or its answer did not come. Try again later.

    Attributes:
        maybe_applied: whether the request may have taken effect.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        maybe_applied: bool = True,
        nature: Nature | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message, code=code, nature=nature)
        self.maybe_applied = maybe_applied
        self.status = status


class Unauthorized(StoreError):
    """The key or the database role is wrong or may not do this. Trying again will not help."""

    nature: Nature = "credentials"


class MigrationMissing(StoreError):
    """The database lacks this package's schema. The message names the command that installs it."""

    nature: Nature = "missing"


class Refused(StoreError):
    """The database refused the request: the request itself is at fault."""

    nature: Nature = "refused"


class Blocked(Refused):
    """A proxy or firewall in front of the API refused the request for its size or its text.

    Attributes:
        status: the HTTP status of its answer.
    """

    nature: Nature = "blocked"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Duplicate(Refused):
    """A message with this `dedup_key` was stored before."""


class NobodyListens(Refused):
    """No handler listens to the key of a message that was sent with `require_listener`; nothing was stored."""


class BadSignature(RuntimeFault):
    """The signature of a webhook or a link is missing or wrong, or its time lies outside the replay window.

    Attributes:
        is_stale: whether only the time is wrong.
    """

    def __init__(self, message: str, *, is_stale: bool = False) -> None:
        super().__init__(message)
        self.is_stale = is_stale


class PostFailed(RuntimeFault):
    """A webhook's target did not accept a message. The text never holds the URL's credentials or query.

    Attributes:
        kind: the cause: the "target", whatever the message; perhaps the "message"; "asked" if the target asked for a
            pause; "gone" if it asked for no more requests.
        status: the status of its answer, if there was one.
        seconds: the pause that it asked for.
    """

    def __init__(
        self,
        text: str,
        *,
        kind: Literal["target", "message", "asked", "gone"] = "target",
        status: int | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status
        self.seconds = seconds


class AskError(RuntimeFault):
    """A request failed.

    Attributes:
        key: of the request.
        request: its id, or None if it is not known to be stored.
    """

    def __init__(self, message: str, key: str, request: int | None) -> None:
        super().__init__(message)
        self.key = key
        self.request = request


class AskTimeout(AskError, TimeoutError):
    """No answer came in time. The request and a late answer stay in the stream.

    Attributes:
        reply_to: the key of a late answer.
    """

    def __init__(
        self, key: str, request: int | None, reply_to: str, seconds: float, waiting: int | None
    ) -> None:
        if request is None:
            text = f"The request under {key} could not be sent within {seconds:g} s; it may have been stored."
        else:
            who = "" if waiting is None else f" ({waiting} of its handlers have not finished)"
            text = (
                f"No answer to request {request} under {key} came within {seconds:g} s{who}. A late answer will be "
                f"kept under {reply_to}, and `runtime trace {request}` shows which handlers have the request."
            )
        super().__init__(text, key, request)
        self.reply_to = reply_to


class AskFailed(AskError):
    """The handler of the request failed for good; the dead letter has the details.

    Attributes:
        handler: its name, `agent.handler`.
        error: the last error, as `TypeName: text`.
        reason: one word: failed, rejected, invalid or crashed.
    """

    def __init__(self, key: str, request: int, handler: str | None, error: str, reason: str) -> None:
        super().__init__(
            f"{handler or 'Its handler'} could not answer request {request} under {key} ({reason}): {error}",
            key,
            request,
        )
        self.handler = handler
        self.error = error
        self.reason = reason


class NobodyAnswers(AskError):
    """No handler can answer the request; waiting longer would not help."""


class LeaseLost(RuntimeFault):
    """A step's result, a text or a transaction was not kept: its delivery belongs to another worker by now.

    That happens to a process that was frozen for longer than a lease. Whatever this attempt still does counts for
    nothing; the worker that has the delivery finishes it.
    """


class TextBroken(RuntimeFault):
    """A text that is followed ends within: its handler has ended without closing it."""


class ToolFailed(RuntimeFault):
    """A tool of an MCP server has failed, or could not be called. The text holds no URL, and what the tool said."""


class WaitTimeout(RuntimeFault, TimeoutError):
    """What a handler waited for did not come in time."""


class WakeupError(RuntimeFault):
    """A wake-up path cannot work until an operator repairs it. Polling goes on meanwhile."""


class LocalStackError(RuntimeFault):
    """A command of the local stack failed; the message says why and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean emits?` for a word that is nearly one of those known, else an empty text."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def misspelt(word: str, known: Iterable[str]) -> str | None:
    """Return the one of the known words that another is but for a letter or two, or None."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.9)), None)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of the known words that another is nearly, or None.

    Near is what is spelt almost alike, else the only one with a part that this word lacks, or without one that it has:
    `first` for `first_seconds`, `max_attempts` for `attempts`.
    """
    # Imported here: it is needed for errors alone.
    from difflib import get_close_matches

    known = list(known)
    if near := get_close_matches(word, known, n=1, cutoff=0.75):
        return near[0]
    parts = set(word.split("_"))
    alike = [each for each in known if parts < (theirs := set(each.split("_"))) or theirs < parts]
    return alike[0] if len(alike) == 1 else None


def first_fault(group: BaseExceptionGroup[RuntimeFault]) -> RuntimeFault:
    """The first fault in a group, however deep it lies."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RuntimeFault)
    return error
