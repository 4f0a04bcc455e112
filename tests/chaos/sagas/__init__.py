"""Is what a handler has finished undone in reverse if it dies, and only then, whoever is killed in between?"""

from tests.chaos.feature import Feature
from tests.chaos.sagas.judge import judge
from tests.chaos.sagas.ordering import order_and_fork

SAGAS = Feature("sagas", ("agency.travel",), judge, order_and_fork)
