"""All measures, in the order they run."""

from tests.bench.contestants import DURABLE
from tests.bench.measures import Measure
from tests.bench.measures.adapters import adapters
from tests.bench.measures.drain import drain
from tests.bench.measures.fan_out import chain, fan_out, wildcards
from tests.bench.measures.growth import backlog, growth, huge
from tests.bench.measures.held import held, recovery
from tests.bench.measures.idle import idle
from tests.bench.measures.latency import latency, paths
from tests.bench.measures.limits import limits
from tests.bench.measures.memory import memory
from tests.bench.measures.rest import rest
from tests.bench.measures.roads import roads, roads_rest
from tests.bench.measures.sending import send
from tests.bench.measures.start_up import start_up
from tests.bench.measures.steps import steps, trips
from tests.bench.measures.suspended import awaited, due, resumed, suspended
from tests.bench.measures.writers import writers

MEASURES = (
    Measure("drain", drain),
    Measure("rest", rest, peers=()),
    Measure("roads", roads),
    Measure("roads_rest", roads_rest, peers=()),
    Measure("send", send),
    Measure("latency", latency),
    Measure("paths", paths, peers=()),
    Measure("fan_out", fan_out, peers=()),
    Measure("chain", chain, peers=()),
    Measure("wildcards", wildcards, peers=()),
    Measure("growth", growth),
    Measure("huge", huge, peers=(), is_long=True),
    Measure("backlog", backlog, peers=()),
    Measure("held", held, is_long=True),
    Measure("recovery", recovery, peers=(), is_long=True),
    Measure("writers", writers, peers=()),
    Measure("steps", steps, peers=DURABLE),
    Measure("trips", trips, peers=()),
    Measure("adapters", adapters, peers=()),
    Measure("suspended", suspended, peers=()),
    Measure("awaited", awaited, peers=()),
    Measure("due", due, peers=()),
    Measure("resumed", resumed, peers=()),
    Measure("idle", idle),
    Measure("memory", memory, peers=()),
    Measure("start_up", start_up),
    Measure("limits", limits, peers=()),
)
