"""The files that `runtime init` writes into a Supabase project: migrations, configuration and a first agent.

First everything is decided, from names and contents alone; then the new files are written. A file that exists is never
written to: neither the user's own, nor one of the runtime's that somebody has edited.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Final

from runtime.errors import SettingsError
from runtime.local.migrations import Migration, migrations_folder, read_migrations

CONFIG: Final = Path("supabase", "config.toml")
MIGRATIONS: Final = Path("supabase", "migrations")
AGENT: Final = Path("agents", "greeter.py")


class FileOutcome(StrEnum):
    """The outcome for a file: written, or left as it is."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    EDITED = "edited"


@dataclass(frozen=True, slots=True)
class FileStep:
    """One file of the plan.

    Attributes:
        path: from the project's folder.
        fate: its outcome.
        text: its content in this release.
    """

    path: Path
    fate: FileOutcome
    text: str


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """The plan for a project.

    Attributes:
        folder: the project's.
        steps: one per file of this release, in order.
        is_out_of_order: whether the project has migrations of its own that are later than a new one; the Supabase CLI
            then needs an option.
    """

    folder: Path
    steps: Sequence[FileStep]
    is_out_of_order: bool

    def of(self, fate: FileOutcome) -> list[FileStep]:
        """Return the steps with this outcome."""
        return [step for step in self.steps if step.fate is fate]

    def carry_out(self) -> None:
        """Write the new files.

        Raises:
            SettingsError: a file cannot be written.
        """
        for step in self.of(FileOutcome.WRITTEN):
            path = self.folder / step.path
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # Exclusive: between the plan and this line somebody may have written it.
                with path.open("x", encoding="utf-8", newline="\n") as file:
                    file.write(step.text)
            except OSError as error:
                raise SettingsError(f"{path} cannot be written: {error.strerror or error}.") from None


def plan_project(folder: Path) -> ProjectPlan:
    """Return the plan for a project's folder, which need not exist yet.

    Raises:
        SettingsError: the folder is a file, or a migration of the user's has the version of one of the runtime's.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is no folder. Name the folder of your Supabase project, or a new one.")
    ours = read_migrations(migrations_folder())
    theirs = _others(folder, ours)
    steps = [*_config(folder), *(_migration(folder, each) for each in ours), *_agent(folder)]
    written = {step.path.name for step in steps if step.fate is FileOutcome.WRITTEN}
    latest = max((each.version for each in theirs), default="")
    return ProjectPlan(
        folder, steps, any(each.file_name in written and each.version < latest for each in ours)
    )


def _others(folder: Path, ours: Sequence[Migration]) -> list[Migration]:
    """Return the user's own migrations."""
    names = {migration.file_name: migration.version for migration in ours}
    theirs = [each for each in read_migrations(folder / MIGRATIONS) if each.file_name not in names]
    versions = {version: name for name, version in names.items()}
    for each in theirs:
        if each.version in versions:
            # The Supabase CLI knows migrations by their versions alone.
            raise SettingsError(
                f"{MIGRATIONS / each.file_name} has the version of {versions[each.version]}, which is to be put beside "
                "it. Rename yours to another time; nothing was written."
            )
    return theirs


def _config(folder: Path) -> Iterator[FileStep]:
    """Yield the CLI's configuration if the project has none."""
    if not (folder / CONFIG).exists():
        project_id = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "agents"
        yield FileStep(
            CONFIG, FileOutcome.WRITTEN, _starter("config.toml").replace("{project_id}", project_id)
        )


def _migration(folder: Path, migration: Migration) -> FileStep:
    path = folder / MIGRATIONS / migration.file_name
    fate = FileOutcome.WRITTEN
    if path.exists():
        # `read_text` ignores the kind of line ends, which Git may change.
        fate = (
            FileOutcome.UNCHANGED if path.read_text(encoding="utf-8") == migration.sql else FileOutcome.EDITED
        )
    return FileStep(MIGRATIONS / migration.file_name, fate, migration.sql)


def _agent(folder: Path) -> Iterator[FileStep]:
    """Yield a first agent if the project has none."""
    if not any((folder / AGENT.parent).glob("*.py")):
        yield FileStep(AGENT, FileOutcome.WRITTEN, _starter(AGENT.name))


def _starter(name: str) -> str:
    return files("runtime.cli.scaffold").joinpath("starter", name).read_text(encoding="utf-8")
