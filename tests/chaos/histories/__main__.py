"""`python -m tests.chaos.histories`: histories one after another on both servers; exit code 0 when all held."""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
import typer

from runtime.local import keys
from runtime.local.gateway_process import GatewayProcess
from runtime.local.ports import free_port
from runtime.local.test_cluster import Cluster, running_cluster
from tests.chaos.histories.play import Outcome, play
from tests.conftest import DEBIAN_15
from tests.kernel.driver import connected
from tests.kernel.mutations import MUTATIONS


@contextmanager
def kernel(
    cluster: Cluster, *, rest: bool = True, broken: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """A fresh database, and a gateway over it; `broken` names mutations that are carried out in it."""
    name = cluster.make_database()
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-histories-"))
    gateway = GatewayProcess(folder, port=free_port(), database_url=cluster.url(name, user=keys.SUPERUSER))

    async def break_rules() -> None:
        async with connected(cluster.url(name)) as connection:
            for mutation in [each for each in MUTATIONS if each.name in broken]:
                await mutation.carry_out(connection)

    try:
        anyio.run(break_rules)
        if rest:
            gateway.start()
        yield cluster.url(name), (f"http://127.0.0.1:{gateway.port}", keys.SERVICE_ROLE_KEY) if rest else None
    finally:
        gateway.kill()
        cluster.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)


def one_history(
    cluster: Cluster, seed: int, steps: int, *, rest: bool = True, broken: tuple[str, ...] = ()
) -> Outcome:
    """Play one on a database of its own."""
    with kernel(cluster, rest=rest, broken=broken) as (url, gateway):

        async def played() -> Outcome:
            return await play(url, gateway, seed, steps=steps)

        return anyio.run(played)


def main(
    seconds: Annotated[float, typer.Option(help="How long new histories are begun.")] = 60,
    seed: Annotated[
        int | None, typer.Option(help="Of the first one; then one more each.", show_default="drawn")
    ] = None,
    steps: Annotated[int, typer.Option(help="Transactions of each writer in a history.")] = 60,
    broken: Annotated[
        list[str] | None, typer.Option(help="A mutation of the kernel; may be repeated.")
    ] = None,
) -> None:
    """Play random histories and judge each; says which seed went wrong, and how."""
    if unknown := set(broken or ()) - {each.name for each in MUTATIONS}:
        raise typer.BadParameter(f"there is no mutation {min(unknown)!r}: see tests/kernel/mutations.py")
    seed = time.time_ns() % 2**31 if seed is None else seed
    totals: Counter[str] = Counter()
    wrong = 0
    until = time.monotonic() + seconds
    with running_cluster() as newest, running_cluster(DEBIAN_15) as oldest:
        while time.monotonic() < until:
            for name, cluster in (("18", newest), ("15", oldest)):
                outcome = one_history(cluster, seed, steps, broken=tuple(broken or ()))
                totals.update(
                    {"histories": 1, "messages": outcome.messages, "runs": outcome.runs, **outcome.counts}
                )
                for problem in outcome.problems:
                    wrong += 1
                    print(f"seed {seed}, PostgreSQL {name}: {problem}", flush=True)
            seed += 1
    print(", ".join(f"{count} {what}" for what, count in totals.most_common()))
    print(f"{wrong} problems")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
