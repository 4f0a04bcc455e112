"""Which features take part? All that are named here."""

from tests.chaos.batches import BATCHES
from tests.chaos.bookings import BOOKINGS
from tests.chaos.hostile import HOSTILE
from tests.chaos.incoming import INCOMING
from tests.chaos.outgoing import OUTGOING
from tests.chaos.requests import REQUESTS
from tests.chaos.sagas import SAGAS
from tests.chaos.timers import TIMERS
from tests.chaos.unruly import UNRULY
from tests.chaos.waits import WAITS

FEATURES = (TIMERS, REQUESTS, INCOMING, BATCHES, OUTGOING, WAITS, BOOKINGS, SAGAS, HOSTILE, UNRULY)
