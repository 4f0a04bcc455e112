"""The reviewer checks each draft: its length, its reading ease, and whether its links exist."""

from runtime import Agent, Context

from ._desk import Approval, ArticleDraft, Fault, Rejection, inside, notes_folder
from ._markdown import internal_links, paragraphs
from ._prose import reading_ease, words

FEWEST_WORDS = 60
LOWEST_READING_EASE = 30.0

agent = Agent("reviewer")


@agent.on("draft.written", concurrency=4)
def review(draft: ArticleDraft, context: Context) -> None:
    """Approve the draft, or reject it with all that is wrong, so that one round of mending is enough."""
    prose = "\n".join(paragraphs(draft.body))
    count, ease = len(words(prose)), reading_ease(prose)
    faults = _dead_links(draft)
    if count < FEWEST_WORDS:
        faults.append(Fault(kind="too short", detail=f"{count} words; at least {FEWEST_WORDS} are wanted"))
    elif ease < LOWEST_READING_EASE:
        detail = f"reading ease {ease:.0f}; at least {LOWEST_READING_EASE:.0f} is wanted"
        faults.append(Fault(kind="hard to read", detail=detail))

    if faults:
        context.emit("draft.rejected", Rejection(draft=draft, faults=faults))
    else:
        context.emit("draft.approved", Approval(draft=draft, words=count, reading_ease=round(ease, 1)))


def _dead_links(draft: ArticleDraft) -> list[Fault]:
    """The links to notes that do not exist."""
    folder, slash, _ = draft.path.rpartition("/")
    faults = []
    for link in internal_links(draft.body):
        file = inside(notes_folder(), f"{folder}{slash}{link}")
        if file is None or not file.exists():
            faults.append(Fault(kind="dead link", detail=f"{link} does not exist", link=link))
    return faults
