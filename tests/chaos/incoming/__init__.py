"""Is each webhook stored exactly once, though the server that takes it is killed and its sender sends it again?"""

from tests.chaos.feature import Feature
from tests.chaos.incoming.driver import drive
from tests.chaos.incoming.judge import judge

INCOMING = Feature("incoming", ("counter.note",), judge, drive)
