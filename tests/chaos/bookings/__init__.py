"""Is what a handler wrote in a transaction there exactly if its step or its end is, whoever dies when?"""

from tests.chaos.bookings.judge import judge
from tests.chaos.bookings.ordering import order
from tests.chaos.feature import Feature

BOOKINGS = Feature("bookings", ("clerk.book",), judge, order)
