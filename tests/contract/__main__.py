"""`python -m tests.contract`: records the conversation of the release that the project is on the way to."""

import anyio

from runtime.local.test_cluster import running_cluster
from tests.contract.conversation import Player, Release
from tests.kernel.driver import connected


async def record(url: str, release: Release) -> None:
    """Play the steps against a fresh database, and keep what it answers."""
    async with connected(url) as connection:
        await Player(connection, release).record()


def main() -> None:
    """Record today's conversation as the release's own. Done when it is released, and never again."""
    release = Release.of_today()
    with running_cluster() as cluster:
        anyio.run(record, cluster.url(cluster.make_database()), release)
    release.save()


if __name__ == "__main__":
    main()
