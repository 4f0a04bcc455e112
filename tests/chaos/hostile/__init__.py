"""A writer that may insert whatever it likes: its rows end as they should, and those of others notice nothing."""

from tests.chaos.feature import Feature
from tests.chaos.hostile.judge import judge
from tests.chaos.hostile.writer import write

HOSTILE = Feature("hostile", ("prey.take", "prey.gather", "prey.queue"), judge, write)
