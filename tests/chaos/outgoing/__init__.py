"""Is each answer of a target written exactly once, under one id, whoever is killed and whatever answer is lost?"""

import os

from runtime.local.ports import free_port
from runtime.webhooks.signatures import new_secret
from tests.chaos.feature import Feature
from tests.chaos.outgoing.driver import PORT, SECRET, drive
from tests.chaos.outgoing.judge import judge

# The campaign's own process decides, and the workers it starts inherit it.
os.environ.setdefault(PORT, str(free_port()))
os.environ.setdefault(SECRET, new_secret())

OUTGOING = Feature("outgoing", ("outbox.post",), judge, drive)
