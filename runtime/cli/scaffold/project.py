"""The files that `runtime init` writes into a Supabase project: migrations, configuration and agents to begin with.

First everything is decided, from names and contents alone; then the new files are written. A file that exists is never
written to: neither the user's own, nor one of the runtime's that somebody has edited.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from runtime.errors import SettingsError
from runtime.local.migrations import Migration, migrations_folder, read_migrations

CONFIG: Final = Path("supabase", "config.toml")
MIGRATIONS: Final = Path("supabase", "migrations")
AGENTS: Final = Path("agents")

_HERE: Final = Path(__file__).parent
# Git and the wheel's builder would obey a file of the real name.
_REAL_NAMES: Final = {"gitignore": ".gitignore"}


class Template(StrEnum):
    """The agents to begin with; each is a folder in `templates/`."""

    STARTER = "starter"
    SUPPORT_DESK = "support-desk"


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


def plan_project(folder: Path, template: Template | None = None) -> ProjectPlan:
    """Return the plan for a project's folder.

    Args:
        folder: the project's, which need not exist yet.
        template: the agents to write; None for the starter's, and none where the project has agents.

    Raises:
        SettingsError: the folder is a file, or a migration of the user's has the version of one of the runtime's.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is no folder. Name the folder of your Supabase project, or a new one.")
    ours = read_migrations(migrations_folder())
    theirs = _others(folder, ours)
    if template is None and not any((folder / AGENTS).glob("*.py")):
        template = Template.STARTER
    migrations = (_file(folder, MIGRATIONS / each.file_name, each.sql) for each in ours)
    agents = _template(folder, template) if template else ()
    steps = [*_config(folder), *migrations, *agents]
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
        text = (_HERE / "config.toml").read_text(encoding="utf-8")
        yield FileStep(CONFIG, FileOutcome.WRITTEN, text.replace("{project_id}", project_id))


def _template(folder: Path, template: Template) -> Iterator[FileStep]:
    """Yield the files of a template."""
    root = _HERE / "templates" / template
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = _REAL_NAMES.get(path.name, path.name)
            yield _file(folder, path.relative_to(root).with_name(name), path.read_text(encoding="utf-8"))


def _file(folder: Path, path: Path, text: str) -> FileStep:
    fate = FileOutcome.WRITTEN
    if (folder / path).exists():
        # `read_text` ignores the kind of line ends, which Git may change.
        is_ours = (folder / path).read_text(encoding="utf-8") == text
        fate = FileOutcome.UNCHANGED if is_ours else FileOutcome.EDITED
    return FileStep(path, fate, text)
