"""All measures, in the order they run."""

from tests.bench.measures import Measure
from tests.bench.measures.drain import drain
from tests.bench.measures.latency import latency, paths
from tests.bench.measures.sending import send

MEASURES = (
    Measure("drain", drain),
    Measure("send", send),
    Measure("latency", latency),
    Measure("paths", paths, peers=False),
)
