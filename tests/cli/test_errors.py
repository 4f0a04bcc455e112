"""What can be wrong with where the stream is, and what a person is told: one sentence, with its cure, no traceback."""

import json
import subprocess
import sys

import pytest

from runtime.local.ports import free_port
from runtime.local.stack import LocalStack
from tests.cli.shell import Shell, error_line


@pytest.mark.parametrize("command", [["send", "a", "1"], ["tail"]])
class TestEachCommandTellsOf:
    """Faults that every command can meet."""

    def test_nothing_set(self, nowhere: Shell, command: list[str]) -> None:
        line = error_line(nowhere.run(*command))
        assert "SUPABASE_URL" in line
        assert "runtime local start" in line

    def test_a_url_without_a_key(self, nowhere: Shell, command: list[str]) -> None:
        line = error_line(nowhere.run(*command, SUPABASE_URL="http://127.0.0.1:9"))
        assert "SUPABASE_URL of the environment is set, its key is not" in line
        assert "SUPABASE_SERVICE_ROLE_KEY" in line

    def test_a_setting_that_is_none(self, nowhere: Shell, command: list[str]) -> None:
        line = error_line(nowhere.run(*command, RUNTIME_CONCURRENCY="many"))
        assert "RUNTIME_CONCURRENCY" in line

    def test_a_wrong_key(self, shell: Shell, command: list[str]) -> None:
        line = error_line(shell.run(*command, SUPABASE_SERVICE_ROLE_KEY="sb_secret_wrong"))
        assert "SUPABASE_SERVICE_ROLE_KEY" in line
        assert "sb_secret_wrong" not in line

    def test_nobody_there(self, nowhere: Shell, command: list[str]) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        place = {"SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": "x", "RUNTIME_REQUEST_SECONDS": "1"}
        line = error_line(nowhere.run(*command, **place))
        assert url in line
        assert "`runtime local start`" in line
        assert "The address comes from SUPABASE_URL of the environment." in line
        database = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/postgres"
        line = error_line(nowhere.run(*command, DATABASE_URL=database, RUNTIME_REQUEST_SECONDS="1"))
        assert "127.0.0.1" in line
        assert "secret" not in line
        assert "The address comes from DATABASE_URL of the environment." in line


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SUPABASE_UR", "SUPABASE_URL"),
        ("DATABASE_ULR", "DATABASE_URL"),
        ("SUPABASE_SERVICE_ROL_KEY", "SUPABASE_SERVICE_ROLE_KEY"),
    ],
)
def test_a_misspelt_variable_of_the_stream_is_told_with_the_one_that_was_meant(
    nowhere: Shell, name: str, meant: str
) -> None:
    beside = {"SUPABASE_URL": "http://127.0.0.1:9"} if "KEY" in name else {}
    line = error_line(nowhere.run("status", **beside, **{name: "x"}))
    assert f"{name} of the environment is not used; did you mean {meant}?" in line


def test_a_misspelt_setting_is_told_with_its_file_and_others_are_left_alone(nowhere: Shell) -> None:
    (nowhere.folder / ".env").write_text("RUNTIME_CONCURENCY=5\nRUNTIME_OF_ANOTHER_PROGRAM=x\n")
    first, *rest = nowhere.run("status").stderr.splitlines()
    file = (nowhere.folder / ".env").resolve()
    assert first == (
        f"RUNTIME_CONCURENCY of {file} is no setting, and has no effect; did you mean RUNTIME_CONCURRENCY?"
    )
    assert len(rest) == 1


def test_a_misspelt_variable_of_the_stream_is_told_where_the_local_stack_is_used_instead(
    nowhere: Shell,
) -> None:
    with LocalStack.temporary() as stack:
        stack.start()
        here = {"RUNTIME_LOCAL_DIR": str(stack.folder)}
        told = nowhere.run("read", "--json", SUPABASE_UR="https://x.supabase.co", **here)
        # A name of another program's is left alone.
        untold = nowhere.run("read", "--json", SUPABASE_DB_URL="postgresql://x", **here)
    assert json.loads(told.stderr)["message"] == (
        "SUPABASE_UR of the environment is not used; did you mean SUPABASE_URL? The local stack is used."
    )
    assert (untold.code, untold.stderr) == (0, "")


@pytest.mark.parametrize("command", ["run", "serve", "drain"])
def test_warnings_of_the_settings_stand_in_the_log_in_its_form(nowhere: Shell, command: str) -> None:
    (nowhere.folder / "a.py").write_text(
        'from runtime import Agent\nagent = Agent("a")\n@agent.on("a.b")\ndef f(x): ...\n'
    )
    ended = nowhere.run(command, "a.py", RUNTIME_CONCURENCY="5")
    warning, error = [json.loads(line) for line in ended.stderr.splitlines()]
    assert warning["message"].endswith("did you mean RUNTIME_CONCURRENCY?")
    assert error["error"].startswith("Nothing says where the stream is.")


def test_a_file_of_agents_that_is_run_by_itself_says_how_to_run_it(nowhere: Shell) -> None:
    (nowhere.folder / "a.py").write_text(
        'from runtime import Agent\nagent = Agent("a")\nother = Agent("b")\n'
    )
    (nowhere.folder / "b.py").write_text("import a\n")
    (nowhere.folder / "c.py").write_text("import a\nraise SystemExit(3)\n")

    agents = nowhere.folder / "agents"
    agents.mkdir()
    (nowhere.folder / "desk.py").touch()
    for name, missing in (("d", "desk"), ("e", "desk_of_others")):
        (agents / f"{name}.py").write_text(f"from runtime import Agent\nfrom {missing} import Mail\n")

    def said(file: str) -> str:
        command = [sys.executable, file]
        ended = subprocess.run(command, cwd=nowhere.folder, capture_output=True, text=True, check=False)
        return ended.stdout + ended.stderr

    assert said("a.py") == "a.py declares agents, and nothing has run them: `runtime run a.py` does.\n"
    assert said("b.py") == ""
    assert said("c.py") == ""
    assert said("agents/d.py").splitlines()[-2:] == [
        "ModuleNotFoundError: No module named 'desk'",
        "Python looks for desk beside agents/d.py alone: `runtime run agents/d.py` finds it, and runs the agents.",
    ]
    assert said("agents/e.py").endswith("No module named 'desk_of_others'\n")


def test_a_database_without_the_migrations_is_told_with_the_command_that_mends_it(
    nowhere: Shell, empty_database: str
) -> None:
    for command in (["send", "a", "1"], ["status"]):
        line = error_line(nowhere.run(*command, DATABASE_URL=empty_database))
        assert "supabase db push" in line
        # PostgreSQL's advice on the types of a call would lead astray.
        assert "casts" not in line


def test_an_unknown_subscription_is_told_with_the_command_that_lists_them(shell: Shell) -> None:
    line = error_line(shell.run("pause", "no.one"))
    assert "there is no subscription 'no.one'. `runtime subscriptions`" in line
