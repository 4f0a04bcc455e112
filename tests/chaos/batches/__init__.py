"""Does each message of each batch end once and by itself, within limits that all workers share?"""

from tests.chaos.batches.judge import judge
from tests.chaos.batches.sending import send_in_groups
from tests.chaos.feature import Feature

BATCHES = Feature("batches", ("gather.book", "gather.tally"), judge, send_in_groups)
