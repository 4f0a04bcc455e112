"""Does each request get exactly one answer from each handler, and the right one, whoever is killed or cut off?"""

from tests.chaos.feature import Feature
from tests.chaos.requests.asking import ask_all_the_time
from tests.chaos.requests.judge import judge

REQUESTS = Feature("requests", ("desk.bill", "left.answer", "right.answer"), judge, ask_all_the_time)
