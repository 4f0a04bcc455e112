"""Which data folder a project has: found from any folder within it, its own, and kept when the project moves."""

import json
import shutil
from pathlib import Path

import pytest

from runtime.connection.local_stack import STATE, LocalProject, known_stacks
from runtime.errors import SettingsError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("runtime.connection.local_stack.stacks_folder", lambda: tmp_path / "stacks")
    monkeypatch.delenv("RUNTIME_LOCAL_DIR", raising=False)
    return home


def declare(folder: Path, text: str) -> Path:
    (folder / "supabase").mkdir(parents=True)
    (folder / "supabase/config.toml").write_text(text)
    return folder


def start(project: LocalProject) -> LocalProject:
    """Leave in the data folder what a start leaves there."""
    project.data.mkdir(parents=True)
    state = {"project": str(project.folder), "api_port": 1, "db_port": 2, "secret_key": "k"}
    (project.data / STATE).write_text(json.dumps(state))
    return project


def test_a_declared_project_is_found_from_within_and_keeps_its_data_when_it_moves(home: Path) -> None:
    shop = declare(home / "shop", 'project_id = "my shop"\n[api]\nport = 55321\n[db]\nport = "env(PORT)"\n')
    (shop / "agents").mkdir()
    found = start(LocalProject.of(shop / "agents"))
    assert (found.name, found.folder, found.data.name) == ("my shop", shop, "my-shop")
    assert (found.api_port, found.db_port) == (55321, None)
    moved = home / "moved"
    shutil.move(shop, moved)
    assert LocalProject.of(moved / "agents").data == found.data


def test_a_second_folder_that_declares_the_same_name_has_data_of_its_own(home: Path) -> None:
    one = start(LocalProject.of(declare(home / "one", 'project_id = "shop"')))
    other = start(LocalProject.of(declare(home / "other", 'project_id = "shop"')))
    assert one.data != other.data
    shutil.rmtree(home / "one")
    # It stays with what it has, also when the plain name would be free.
    assert LocalProject.of(home / "other").data == other.data
    assert {each.project for each in known_stacks()} == {home / "one", home / "other"}


def test_a_folder_without_a_declaration_is_a_project_once_a_stack_was_started_in_it(home: Path) -> None:
    (home / "a/deep").mkdir(parents=True)
    (home / "b").mkdir()
    assert LocalProject.of(home / "a/deep").folder == home / "a/deep"
    start(LocalProject.of(home / "a"))
    assert LocalProject.of(home / "a/deep").folder == home / "a"
    start(LocalProject.of(home))
    # One that was started at home is not that of every folder below.
    assert LocalProject.of(home / "b").folder == home / "b"


def test_a_configuration_that_cannot_be_read_is_named(home: Path) -> None:
    declare(home / "shop", "project_id = ")
    with pytest.raises(SettingsError, match=r"supabase/config\.toml cannot be read"):
        LocalProject.of(home / "shop")
