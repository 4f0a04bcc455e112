"""Does each slot of a timer tick exactly once, whoever is killed and whatever answer is lost?"""

from tests.chaos.feature import Feature
from tests.chaos.timers.judge import judge

TIMERS = Feature("timers", ("clock.each", "clock.some"), judge)
