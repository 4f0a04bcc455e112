"""Does each handler that waits go on with its own message, once, whoever is killed or cut off while it is suspended?"""

from tests.chaos.feature import Feature
from tests.chaos.waits.judge import judge
from tests.chaos.waits.paying import order_and_pay

WAITS = Feature("waits", ("till.sell",), judge, order_and_pay)
