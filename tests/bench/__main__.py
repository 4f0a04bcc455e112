"""`python -m tests.bench`: measure the runtime beside its peers on one PostgreSQL, and hold it against its bars."""

import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.console import Console

from tests.bench.contestants import OURS, PEERS
from tests.bench.environments import PeerMissing, python_of
from tests.bench.keeping import Keeping, to_json
from tests.bench.measures import QUICK, Measure, Scale
from tests.bench.measures.every import MEASURES
from tests.bench.report import number, show
from tests.bench.sample import Results, Sample
from tests.bench.server import running_server

_console = Console(stderr=True)


def main(
    vs: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Peers to measure beside it: {', '.join(PEERS)}, or none.")
    ] = ",".join(PEERS),
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help=f"Only these: {', '.join(each.name for each in MEASURES)}."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often, with all contestants interleaved.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Small and once, to see that it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep results.json and the plots there; figures that it has already are replaced.",
        ),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Count these runs with those kept there, instead of replacing them.")
    ] = False,
    postgres: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The programs of another PostgreSQL.")
    ] = None,
) -> None:
    """Measure throughput, latency and cost, and print medians, ratios and what of the bars is met.

    Handlers do nothing, messages have 200 bytes. The server keeps its promise of durability: a commit is on disk.
    """
    chosen = _chosen(only)
    peers = _present([name for name in vs.split(",") if name and name != "none"])
    scale, repeat = (QUICK, 1) if quick else (Scale(), repeat)
    keeping = None if into is None else Keeping(into, add=add)
    samples = anyio.run(run, chosen, peers, scale, repeat, postgres, keeping)
    results = Results(samples)
    if as_json:
        print(json.dumps(to_json(results), indent=1))
    else:
        show(results, Console(width=None if sys.stdout.isatty() else 140))


async def run(
    measures: Sequence[Measure],
    peers: Sequence[str],
    scale: Scale,
    repeat: int,
    postgres: Path | None,
    keeping: Keeping | None,
) -> list[Sample]:
    """Every measure as often as asked for, with the contestants interleaved."""
    samples: list[Sample] = []
    async with running_server(postgres) as server:
        for repetition in range(repeat):
            for measure in measures:
                for name in measure.contestants(peers):
                    try:
                        for _ in range(1 if measure.is_long else 1 + scale.retries):
                            done = [
                                sample async for sample in _told(measure.run(server, scale, name), repetition)
                            ]
                            samples += done
                            if all(sample.is_quiet for sample in done):
                                break
                    except (RuntimeError, TimeoutError) as error:
                        if name == OURS:
                            raise
                        _console.print(f"{measure.name} of {name} failed: {error}", style="red", markup=False)
                if keeping is not None:
                    keeping.keep(samples)
    return samples


async def _told(samples: AsyncIterator[Sample], repetition: int) -> AsyncIterator[Sample]:
    """The samples, each printed as it comes."""
    async for sample in samples:
        noise = f"  ({sample.foreign:.1f} cores taken by others)" if sample.foreign > 0.1 else ""
        value = f"{number(sample.value)} {sample.unit}{noise}"
        _console.print(
            f"{repetition + 1}  {sample.figure:<44} {sample.contestant:<14} {value}",
            highlight=False,
            soft_wrap=True,
        )
        yield sample


def _chosen(only: str | None) -> list[Measure]:
    wanted = [each.name for each in MEASURES] if only is None else only.split(",")
    known = {each.name: each for each in MEASURES}
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"there is no measure {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in wanted]


def _present(names: Sequence[str]) -> list[str]:
    """The peers that can be had here; says which cannot, and why."""
    if unknown := [name for name in names if name not in PEERS]:
        raise typer.BadParameter(f"there is no peer {unknown[0]!r}; there are: {', '.join(PEERS)}")
    present = []
    for name in names:
        try:
            python_of(name)
            present.append(name)
        except PeerMissing as missing:
            _console.print(str(missing), style="yellow", markup=False)
    python_of(OURS)
    return present


if __name__ == "__main__":
    # As Ctrl-C does, so that no server and no worker is left behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
