"""`python -m tests.contract RELEASE`: record the answers of a release anew. For a new release; never for an old one."""

import sys

import anyio

from runtime.local.test_cluster import running_cluster
from runtime.store import FUNCTIONS
from tests.contract.conversation import Player, Release, this_release
from tests.kernel.driver import connected


async def record(url: str, release: Release) -> None:
    """Play the steps against a fresh database, and keep what it answers."""
    async with connected(url) as connection:
        player = Player(connection, release)
        for step in release.steps:
            step["answer"] = await player.play(step)


def main() -> None:
    """Record the release that is named, if it is the one that has not been released yet."""
    release = Release.load(sys.argv[1])
    if release.name != this_release():
        raise SystemExit(f"{release.name} has been released, and its workers say what they say.")
    release.functions = {name: dict(types) for name, types in FUNCTIONS.items()}
    with running_cluster() as cluster:
        anyio.run(record, cluster.url(cluster.make_database()), release)
    release.save()


if __name__ == "__main__":
    main()
