"""What can be wrong with where the stream is, and what a person is told: one sentence, with its cure, no traceback."""

import pytest

from runtime.local.ports import free_port
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
        assert "127.0.0.1" in error_line(nowhere.run(*command, **place))
        database = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/postgres"
        line = error_line(nowhere.run(*command, DATABASE_URL=database, RUNTIME_REQUEST_SECONDS="1"))
        assert "127.0.0.1" in line
        assert "secret" not in line


def test_a_database_without_the_migrations_is_told_with_the_command_that_mends_it(
    nowhere: Shell, empty_database: str
) -> None:
    for command in (["send", "a", "1"], ["status"]):
        assert "supabase db push" in error_line(nowhere.run(*command, DATABASE_URL=empty_database))
