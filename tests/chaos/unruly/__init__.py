"""Do handlers that do whatever a program can do cost anybody else a message?"""

from tests.chaos.feature import Feature
from tests.chaos.unruly.judge import judge
from tests.chaos.unruly.sending import send_now_and_then

UNRULY = Feature(
    "unruly",
    ("unruly.raises", "unruly.lingers", "unruly.forks", "unruly.leaves"),
    judge,
    send_now_and_then,
)
