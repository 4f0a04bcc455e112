"""The local stack: what `supabase start` gives a developer, with one command and without Docker."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from runtime.connection.local_stack import STATE, LocalProject
from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.cleanup import guarded
from runtime.local.gateway_process import GatewayProcess
from runtime.local.keys import Keys
from runtime.local.ports import api_port_like, free_port, free_port_like, ports_of_others
from runtime.local.postgres import DISPOSABLE, PostgresServer
from runtime.local.preparation import prepare_foreign, prepare_server
from runtime.local.signing import read_keys, rotate, sign
from runtime.local.state import StackState, locked, place_cluster, remembered, remove_files
from runtime.local.status import StackStatus

Say = Callable[[str], object]


class LocalStack:
    """PostgreSQL and the gateway, with their state in one data folder. All methods block.

    From an event loop call them in a thread: `await anyio.to_thread.run_sync(stack.start)`.

    Args:
        folder: the data folder; that of the project here when None.
        api_port: of the gateway; 0 for any free one. When None, the one used last, or the one that
            `supabase/config.toml` names, or 54321; another one if that is taken.
        db_port: of PostgreSQL, likewise; 54322 by default.
        database_url: use this running PostgreSQL, as a superuser, instead of starting one. Its API has keys of its own.
        settings: server settings of an own PostgreSQL, by name.
        allowed_origins: the origins of web pages, besides those of this machine, that may use the API, such as
            "https://app.example"; those used last when None.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        api_port: int | None = None,
        db_port: int | None = None,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        allowed_origins: Sequence[str] | None = None,
    ) -> None:
        self._project = LocalProject.here() if folder is None else None
        self.folder = (folder or LocalProject.here().data).expanduser().resolve()
        self._api_port = free_port() if api_port == 0 else api_port
        self._db_port = free_port() if db_port == 0 else db_port
        self._port_options = {
            option for option, port in {"--port": api_port, "--db-port": db_port}.items() if port
        }
        self._database_url = database_url
        self._settings = settings
        self._allowed_origins = None if allowed_origins is None else tuple(allowed_origins)
        self._gateway: GatewayProcess | None = None

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator["LocalStack"]:
        """A stack of its own, not yet started, in a folder that is deleted with all it holds when the block ends.

        When the process is killed meanwhile, a guard ends and deletes what is left.
        """
        folder = Path(tempfile.mkdtemp(prefix="agent-runtime-"))
        # It is ours, and the account of PostgreSQL must get through it.
        folder.chmod(0o755)
        stack = cls(folder, api_port=0, db_port=0, settings=DISPOSABLE)
        with guarded(folder):
            try:
                yield stack
            finally:
                try:
                    stack.delete()
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

    @property
    def exists(self) -> bool:
        """Whether it was ever started, and not removed since."""
        return (self.folder / STATE).exists()

    def __repr__(self) -> str:
        return f"<LocalStack {self.folder}>"

    @property
    def api_url(self) -> str:
        """The URL a Supabase client is given."""
        return self.status().api_url

    @property
    def db_url(self) -> str:
        """The URL of the database for the role postgres, which is no superuser; or the given `database_url`."""
        return self.status().db_url

    @property
    def admin_url(self) -> str:
        """The database as a superuser."""
        return self._admin_url(self._state())

    @property
    def anon_key(self) -> str:
        """The older key of browsers."""
        return self._keys_of(self._state()).anon_key

    @property
    def service_role_key(self) -> str:
        """The older key of servers."""
        return self._keys_of(self._state()).service_role_key

    @property
    def publishable_key(self) -> str:
        """The key of browsers."""
        return self._keys_of(self._state()).publishable_key

    @property
    def secret_key(self) -> str:
        """The key of servers."""
        return self._keys_of(self._state()).secret_key

    @property
    def jwt_secret(self) -> str:
        """The secret that signs tokens of the kind HS256."""
        return self._keys_of(self._state()).jwt_secret

    def sign(self, **claims: object) -> str:
        """A token with these claims, signed by the key that signs now; `exp` is an hour away if it is left out.

        Raises:
            LocalStackError: the stack was never started, so it has no key.
        """
        signing_keys = read_keys(self._signing_keys)
        if not signing_keys:
            raise LocalStackError(f"The stack in {self.folder} has no key to sign with; start it first.")
        return sign(signing_keys, {"exp": int(time.time()) + 3600, **claims})

    def rotate(self, algorithm: str = "ES256") -> str:
        """Sign with a new key from now on; tokens of the one before stay valid until the next rotation.

        Args:
            algorithm: "ES256" or "RS256".

        Returns:
            The id (`kid`) of the new key.

        Raises:
            LocalStackError: the stack was never started, or the keys cannot be written.
        """
        if not self.folder.exists():
            raise LocalStackError(f"There is no stack in {self.folder}; start it first.")
        with locked(self.folder):
            return str(rotate(self._signing_keys, algorithm)["kid"])

    @property
    def _signing_keys(self) -> Path:
        return self.folder / "signing_keys.json"

    def start(self, gateway: bool = True, say: Say = bool) -> bool:
        """Start the parts that do not run, and apply this package's migrations.

        Args:
            gateway: false for the database alone.
            say: is told each step that takes a while.

        Returns:
            False when everything ran already.

        Raises:
            LocalStackError: something could not be started; what this call started is stopped again.
        """
        self._make_folder()
        with locked(self.folder):
            usual = None if self.exists else StackState.for_project(self._project)
            state = self._state_to_start(say)
            with remembered(state, self.folder, usual):
                server = self._server(state)
                if server is not None and not server.is_running:
                    say(
                        "Starting PostgreSQL"
                        if server.exists
                        else "Making the database, once, and starting PostgreSQL"
                    )
                has_started_server = server.start() if server is not None else False
                try:
                    if not self._signing_keys.exists():
                        rotate(self._signing_keys)
                    say("Applying the migrations")
                    if server is not None:
                        prepare_server(server)
                    else:
                        prepare_foreign(self._admin_url(state))
                    if gateway and not self._gateway_of(state).is_running:
                        say("Starting the gateway")
                    has_started_gateway = self._gateway_of(state).start() if gateway else False
                except BaseException:
                    if has_started_server and server is not None:
                        server.stop()
                    raise
        return has_started_server or has_started_gateway

    def stop(self) -> bool:
        """Stop the parts that run; a PostgreSQL that is not ours goes on.

        Returns:
            False when nothing ran.

        Raises:
            LocalStackError: something does not end.
        """
        if not self.folder.exists():
            return False
        with locked(self.folder):
            return self._stop(self._state())

    def status(self) -> StackStatus:
        """Return the status of the parts."""
        state = self._state()
        server = self._server(state)
        external = state.database_url
        return StackStatus(
            folder=self.folder,
            project=state.project,
            api_url=f"http://127.0.0.1:{state.api_port}",
            db_url=external.get_secret_value()
            if external is not None
            else f"postgresql://{keys.DB_USER}:{keys.DB_PASSWORD}@127.0.0.1:{state.db_port}/{keys.DATABASE}",
            is_database_ours=external is None,
            is_database_running=server is None or server.is_running,
            is_gateway_running=self._gateway_of(state).is_running,
            keys=self._keys_of(state),
        )

    def pids(self) -> dict[str, int]:
        """The processes of the parts that run and are ours, by name."""
        state = self._state()
        server = self._server(state)
        parts = {
            "database": server.pid if server is not None else None,
            "gateway": self._gateway_of(state).pid,
        }
        return {name: pid for name, pid in parts.items() if pid is not None}

    def reset(self) -> None:
        """Delete the database with all data; parts that ran run again on a fresh one.

        Raises:
            LocalStackError: the database is not ours to delete, or something does not end or start.
        """
        if self._state().database_url is not None:
            raise LocalStackError(
                "The stack uses a PostgreSQL that is not its own, so its data is not deleted. "
                "Stop the stack, and recreate the database yourself."
            )
        before = self.status()
        self.delete()
        if before.is_database_running or before.is_gateway_running:
            self.start(gateway=before.is_gateway_running)

    def delete(self) -> None:
        """Stop the stack and delete its cluster; logs and ports stay known.

        Raises:
            LocalStackError: something does not end, or cannot be deleted.
        """
        if not self.folder.exists():
            return
        with locked(self.folder):
            state = self._state()
            self._stop(state)
            if (server := self._server(state)) is not None and state.cluster is not None:
                server.delete()

    def remove(self) -> bool:
        """Stop the stack and delete its database, keys, ports and logs for good; a PostgreSQL that is not ours stays.

        Returns:
            False when there was no stack.

        Raises:
            LocalStackError: something does not end, or cannot be deleted.
        """
        if not self.exists:
            return False
        self.delete()
        with locked(self.folder):
            remove_files(self.folder)
        return True

    def _stop(self, state: StackState) -> bool:
        has_stopped_gateway = self._gateway_of(state).stop()
        server = self._server(state)
        has_stopped_server = server.stop() if server is not None else False
        return has_stopped_gateway or has_stopped_server

    def _state(self) -> StackState:
        """Return the stored state, or the state that a start would store."""
        if not self.exists:
            usual = StackState.for_project(self._project)
            usual.api_port = self._api_port or usual.api_port
            usual.db_port = self._db_port or usual.db_port
            return usual
        return StackState.load(self.folder)

    def _state_to_start(self, say: Say) -> StackState:
        is_known = self.exists
        remembered = StackState.load(self.folder) if is_known else StackState.for_project(self._project)
        wanted = StackState(
            api_port=self._api_port or remembered.api_port,
            db_port=self._db_port or remembered.db_port,
            cluster=remembered.cluster or place_cluster(self.folder),
            database_url=None if self._database_url is None else SecretStr(self._database_url),
            allowed_origins=remembered.allowed_origins
            if self._allowed_origins is None
            else self._allowed_origins,
            project=remembered.project if self._project is None else self._project.folder,
        )
        if wanted.database_url is not None:
            is_known = wanted.database_url == remembered.database_url
            wanted.keys = (remembered.keys if is_known else None) or Keys.draw()
        server = self._server(remembered)
        has_server = server is not None and server.is_running
        has_gateway = self._gateway_of(remembered).is_running
        if has_server or has_gateway:
            self._refuse_changes(remembered, wanted)
            wanted = remembered
        # Remembered ports are this stack's own, even where another stack remembers them as well.
        reserved = set() if is_known else ports_of_others(self.folder)
        if not self._api_port and not has_gateway:
            wanted.api_port = api_port_like(wanted.api_port, reserved)
        if not self._db_port and not has_server:
            wanted.db_port = free_port_like(wanted.db_port, reserved | {wanted.api_port})
        return wanted

    def _refuse_changes(self, running: StackState, wanted: StackState) -> None:
        changed = [
            option
            for option, is_other in {
                "--port": "--port" in self._port_options and wanted.api_port != running.api_port,
                "--db-port": "--db-port" in self._port_options and wanted.db_port != running.db_port,
                "--database-url": self._database_url is not None
                and wanted.database_url != running.database_url,
                "--allow-origin": wanted.allowed_origins != running.allowed_origins,
            }.items()
            if is_other
        ]
        if changed:
            raise LocalStackError(
                f"The stack in {self.folder} runs already, with another {' and '.join(changed)}. "
                "Stop it first, or start a second one with another --data-dir."
            )

    def _server(self, state: StackState) -> PostgresServer | None:
        if state.database_url is not None:
            return None
        folder = state.cluster or self.folder / "postgres"
        return PostgresServer(folder, port=state.db_port, settings=self._settings)

    def _gateway_of(self, state: StackState) -> GatewayProcess:
        # Kept, since it reaps its child.
        if self._gateway is None or self._gateway.port != state.api_port:
            self._gateway = GatewayProcess(self.folder, port=state.api_port)
        server = self._server(state)
        own = self._admin_url(state)
        self._gateway.serve(
            own if server is None else server.url(user=keys.API_USER),
            realtime_url=own if server is None else server.url(user=keys.REALTIME_USER),
            keys_=self._keys_of(state),
            allowed_origins=state.allowed_origins,
        )
        return self._gateway

    def _keys_of(self, state: StackState) -> Keys:
        return state.keys or Keys()

    def _admin_url(self, state: StackState) -> str:
        server = self._server(state)
        if server is not None:
            return server.url()
        assert state.database_url is not None
        return state.database_url.get_secret_value()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStackError(f"{self.folder} could not be made: {error}") from error
