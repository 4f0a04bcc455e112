"""What can go wrong, and what to do about it?

RuntimeFault                    the root: catch this to catch everything the package raises
├── SettingsError               a setting is missing or makes no sense
├── DeclarationError            an agent or a handler is declared wrongly
│   ├── DiscoveryError          a module or folder of agents cannot be loaded
│   └── NotAwaited              a handler forgot an `await`, or wrote one too many
├── LifespanFailed              no agent of a worker could start, or go on
├── InvalidKey                  a key or a pattern is not one
├── InvalidValue                a value cannot be stored as JSON
├── InvalidPayload              a message's value is not what its handler declared
├── StoreError                  the store refused or could not be reached
│   ├── StoreUnavailable        not reached, or an answer did not come: try again
│   ├── Unauthorized            a wrong or powerless key
│   ├── MigrationMissing        the database lacks our schema, or has another version of it
│   └── Refused                 the database understood and said no
│       ├── Duplicate           the dedup_key was used before
│       └── Blocked             something in front of the API said no
├── BadSignature                a webhook is not from who it says, or too old
├── PostFailed                  a webhook's target did not take a message
├── AskError                    a request came to nothing
│   ├── AskTimeout              no answer came in time; it is kept when it comes
│   ├── AskFailed               whoever handled it failed for good
│   └── NobodyAnswers           there is nobody who could answer it
├── WakeupError                 the way in failed in a way an operator must mend
└── LocalStackError             the local stack could not do as told
"""

from typing import Literal


class RuntimeFault(Exception):
    """The root of every error this package raises."""


class SettingsError(RuntimeFault):
    """A setting is missing or makes no sense; the message names the variable and a value that would do."""


class DeclarationError(RuntimeFault):
    """An agent or a handler is declared wrongly; raised when the module is imported, not when it runs."""


class DiscoveryError(DeclarationError):
    """A module or folder named on the command line holds no agents, or cannot be imported."""


class NotAwaited(DeclarationError):
    """A handler returned what had to be awaited, or awaited what is not; it is raised when the handler runs.

    Another attempt cannot end otherwise, so the delivery becomes a dead letter at once.
    """


class LifespanFailed(RuntimeFault):
    """No agent of a worker could start or go on, since the lifespan of each failed; the message tells them all."""


class InvalidKey(RuntimeFault, ValueError):
    """A key or a pattern is not one; the message says what one looks like."""


class InvalidValue(RuntimeFault, ValueError):
    """A value cannot be stored: no JSON, NaN, a NUL character, a lone surrogate, or too large."""


class InvalidPayload(RuntimeFault, ValueError):
    """A message's value is not what its handler declared; the delivery becomes a dead letter at once.

    The message names the places and what is wrong there, never the value itself: it may hold a secret.
    """


Nature = Literal[
    "away", "locked", "slow", "garbled", "large", "blocked", "refused", "forbidden", "missing", "setup", "credentials",
]  # fmt: skip
"""What kind of fault an error of a store is; `runtime.store.sqlstates` says what each means."""


class StoreError(RuntimeFault):
    """The store refused, or could not be reached.

    Attributes:
        code: the SQLSTATE, or PostgREST's `PGRST…` code, where there was one.
        nature: what kind of fault it is.
    """

    nature: Nature = "away"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class StoreUnavailable(StoreError):
    """The store was not reached, or its answer did not come. Trying again later is right.

    Attributes:
        maybe_applied: whether the request may have taken effect all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        maybe_applied: bool = True,
        nature: Nature = "away",
    ) -> None:
        super().__init__(message, code=code)
        self.maybe_applied = maybe_applied
        self.nature = nature


class Unauthorized(StoreError):
    """The key or the database role is wrong or may not do this. Trying again will not help."""

    def __init__(self, message: str, *, code: str | None = None, nature: Nature = "credentials") -> None:
        super().__init__(message, code=code)
        self.nature = nature


class MigrationMissing(StoreError):
    """The database lacks this package's schema. The message names the command that mends it."""

    nature: Nature = "missing"


class Refused(StoreError):
    """The database understood the request and said no: the request itself is at fault."""

    nature: Nature = "refused"


class Blocked(Refused):
    """Something in front of the API, a proxy or a firewall, refused the request for its size or its text.

    Attributes:
        status: the HTTP status of its answer.
    """

    nature: Nature = "blocked"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Duplicate(Refused):
    """A message with this `dedup_key` was stored before."""


class BadSignature(RuntimeFault):
    """A webhook's signature is missing or wrong, or was made at another time than now.

    Attributes:
        is_stale: whether the signature fits, and only its time lies outside the replay window.
    """

    def __init__(self, message: str, *, is_stale: bool = False) -> None:
        super().__init__(message)
        self.is_stale = is_stale


class PostFailed(RuntimeFault):
    """A webhook's target did not take a message. The text never holds the URL's credentials or query.

    Attributes:
        kind: what it tells of: the "target", whatever the message; the "message", perhaps; a target that "asked" to
            be left alone for some seconds; or one that is "gone" for good.
        status: the status of its answer, where there was one.
        seconds: how long it asked to be left alone.
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
    """A request came to nothing.

    Attributes:
        key: what it was asked under.
        request: its id, or None where it is not known to be stored.
    """

    def __init__(self, message: str, key: str, request: int | None) -> None:
        super().__init__(message)
        self.key = key
        self.request = request


class AskTimeout(AskError, TimeoutError):
    """No answer came in time. The request stands, and so will its answer, in the stream.

    Attributes:
        reply_to: the key an answer is written under, when it comes.
    """

    def __init__(
        self, key: str, request: int | None, reply_to: str, seconds: float, waiting: int | None
    ) -> None:
        if request is None:
            text = f"The request under {key} could not be sent within {seconds:g} s; it may be there all the same."
        else:
            who = "" if waiting is None else f" ({waiting} of those who got it have not finished)"
            text = (
                f"No answer to request {request} under {key} came within {seconds:g} s{who}. It stands: the answer "
                f"will be kept under {reply_to}, and `runtime trace {request}` shows who has it."
            )
        super().__init__(text, key, request)
        self.reply_to = reply_to


class AskFailed(AskError):
    """Whoever handled the request failed for good; the dead letter has the details.

    Attributes:
        handler: who that was, `agent.handler`.
        error: the last error, as `TypeName: text`.
        reason: one word: failed, rejected, invalid or crashed.
    """

    def __init__(self, key: str, request: int, handler: str | None, error: str, reason: str) -> None:
        super().__init__(
            f"{handler or 'Whoever handled it'} could not answer request {request} under {key} ({reason}): {error}",
            key,
            request,
        )
        self.handler = handler
        self.error = error
        self.reason = reason


class NobodyAnswers(AskError):
    """There is nobody who could answer the request; waiting any longer would not help."""


class WakeupError(RuntimeFault):
    """The way in cannot work until an operator mends something. Polling goes on meanwhile."""


class LocalStackError(RuntimeFault):
    """The local stack could not do as told; the message says why and what to do."""
