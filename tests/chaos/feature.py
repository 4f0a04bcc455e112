"""What takes part in a campaign beside the chain? One folder for each feature: its agents, and its judge."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos.ledger import Ledger

if TYPE_CHECKING:
    from tests.chaos.judge import Problem
    from tests.chaos.stage import Stage


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that agents can do, and how to tell that it was neither lost nor doubled.

    Its agents stand in `tests/chaos/NAME/agents.py` and note every attempt in the ledger; their keys begin with
    the feature's name, so that the chain's judge does not take them for its own.

    Attributes:
        name: of the feature, and of its folder.
        subscriptions: what its agents declare; an act begins when they are settled.
        judge: holds the database against the ledger when all acts are over, and objects too where nothing happened.
        drive: what a script does during each act, until the time it is given; it notes in `ledger.driven[name]`.
    """

    name: str
    subscriptions: tuple[str, ...]
    judge: Callable[[Any, Ledger], Awaitable[list["Problem"]]]
    drive: "Callable[[Stage, Ledger, float], Awaitable[None]] | None" = None

    @property
    def agents(self) -> str:
        """The module its agents are in, as `runtime run` takes it."""
        return f"tests.chaos.{self.name}.agents"
