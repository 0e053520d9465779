"""The data directory: where everything lies, what runs, and who may change it now."""

import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from cli.stack.processes import ProcessRecord, start_time
from cli.stack.provision import SERVICES
from cli.stack.replicas import in_order, service_of, target
from cli.stack.restarts import Restarts
from cli.stack.users import is_root
from services.chassis.errors import Kind, ServiceError
from services.chassis.settings import read_secret
from services.chassis.signing import public_hex
from services.consent.domain.journal import file_name, key_of, lock_name

# Raised when state.json changes its meaning; an older CLI then refuses instead of guessing.
LAYOUT = 2
# 1 did not say where its folder is.
LAYOUTS_READ = (1, LAYOUT)
# Name of the supervisor among the processes; it stands there only where `comity up` left one.
SUPERVISOR = "supervisor"
# How long a command waits for the folder: the supervisor holds it for moments, another command for long.
HOLD_PATIENCE_S = 1.0
HOLD_POLL_S = 0.02
# Where root's Postgres keeps its files when its unprivileged user cannot pass through to the data directory.
ROOT_HOME = Path("/var/lib/comity")
# Names the data directory; a process of a stack is told it otherwise.
DATA_DIR_VARIABLE = "COMITY_DATA_DIR"
# Where consent's journal is kept, if not beside the data directory.
JOURNAL_VARIABLE = "COMITY_JOURNAL_DIR"


@dataclass(slots=True)
class State:
    """What state.json holds; readable by its owner only, since addresses carry passwords.

    Args:
        stack_id: random; tells this stack's files outside the data directory from another's.
        path: of the folder, absolute; a copy of the folder tells by it that what runs is not its own.
        ports: of each server and service; kept over restarts where they stay free.
        processes: what was started and not yet stopped.
        urls: of postgres (administrator), nats and valkey, as the running services were told.
        databases: each service's address of its own database.
        external: names of the servers that somebody else runs.
        versions: of the servers' wheels.
        secrets: names of the secrets that were made; one that is missing later is never made anew.
        restarts: what the supervisor started again since the stack was started.
    """

    stack_id: str
    layout: int = LAYOUT
    path: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, ProcessRecord] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    databases: dict[str, str] = field(default_factory=dict)
    external: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    restarts: dict[str, Restarts] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, str]:
        """Where each service is called: host:port, or the target of all its replicas."""
        return {
            service: target([self.ports[name] for name in in_order(self.ports) if service_of(name) == service])
            for service in SERVICES
            if service in self.ports
        }


class DataDir:
    """A stack's folder, usually `.comity/`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.nats = self.path / "nats"
        self.valkey = self.path / "valkey"
        self.logs = self.path / "logs"
        self.traces = self.path / "traces"
        self.secrets = self.path / "secrets"

    def create(self) -> None:
        """Make the folders, closed to others but for the way through to Postgres' files."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711 if is_root() else 0o700)
        for folder in (self.nats, self.valkey, self.logs, self.traces, self.secrets):
            folder.mkdir(mode=0o700, exist_ok=True)

    def postgres(self, stack_id: str) -> Path:
        """Folder of the Postgres server: where its files are, else where it may have them."""
        outside = ROOT_HOME / stack_id / "postgres"
        # A folder that was moved has them where they were; looking elsewhere would begin an empty database.
        there = [folder for folder in (outside, self.path / "postgres") if (folder / "data").exists()]
        return there[0] if there else self._place(stack_id)

    def journal(self, *, disposable: bool = False) -> Path:
        """Folder of consent's journal: beside this one, so that a copy of this one does not hold it.

        Args:
            disposable: the stack is thrown away as a whole, and never copied.
        """
        named = os.environ.get(JOURNAL_VARIABLE)
        if named:
            return Path(named).absolute()
        return self.path / "journal" if disposable else self.path.with_name(f"{self.path.name}.journal")

    @property
    def model_key(self) -> Path:
        """File of the key that this stack's models are signed with."""
        return self.secrets / "model_key"

    @property
    def journal_key(self) -> bytes | None:
        """The key of consent's journal; None where consent was never started here."""
        try:
            return key_of(read_secret(self.secrets / "receipt_key"))
        except ValueError:
            return None

    def _place(self, stack_id: str) -> Path:
        """Where Postgres' files may be: inside, unless its user could not get there."""
        # What is not there yet is made so that it can be passed through.
        there = [folder for folder in (self.path, *self.path.parents) if folder.exists()]
        if not is_root() or all(folder.stat().st_mode & 0o001 for folder in there):
            return self.path / "postgres"
        return ROOT_HOME / stack_id / "postgres"

    def read(self) -> State | None:
        """The state; None when nothing was ever started here.

        Raises:
            ServiceError: FAILED_PRECONDITION when state.json is unreadable, of another layout, or a copy of one that
                is somewhere else: what it names runs there.
        """
        state = self._parse()
        if state is not None and self._is_copy(state):
            raise _refusal(
                "FOLDER_IS_A_COPY",
                f"{self.path} is a copy of {state.path}, and what it names is of the stack there; use that one, or "
                "make a copy that is a stack of its own with `comity backup` and `comity restore`",
            )
        return state

    def moved(self, state: State) -> bool:
        """Whether the folder was somewhere else when the state was written."""
        return state.path not in ("", str(self.path.resolve()))

    def adopt(self) -> State:
        """Make a copied or restored folder a stack of its own; the state that is then in it.

        It gets an id and ports of its own, and nothing that runs is its. Postgres' files belong in
        `postgres(stack_id)`; those that the folder brings are moved there.

        Raises:
            ServiceError: FAILED_PRECONDITION when there is no state, it cannot be read, or the folder is in use.
        """
        with self.exclusive():
            state = self._parse()
            if state is None:
                raise _refusal("NOT_A_STACK", f"{self.path} has no state.json; name a folder that was a stack's")
            state.stack_id = secrets.token_hex(8)
            state.processes, state.ports, state.databases, state.restarts = {}, {}, {}, {}
            brought, place = self.path / "postgres", self._place(state.stack_id)
            if brought != place and brought.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(brought, place)
            self.write(state)
            return state

    def _is_copy(self, state: State) -> bool:
        """Whether the folder that the state was written in still is a stack's, and this is another folder."""
        if not self.moved(state):
            return False
        try:
            there = Path(state.path)
            return not there.samefile(self.path) and DataDir(there)._parse_id() == state.stack_id
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _parse_id(self) -> str:
        return str(json.loads((self.path / "state.json").read_text()).get("stack_id", ""))

    def _parse(self) -> State | None:
        file = self.path / "state.json"
        try:
            data = json.loads(file.read_text())
            if data["layout"] not in LAYOUTS_READ:
                raise _refusal(
                    "STATE_OF_ANOTHER_LAYOUT",
                    f"{file} has layout {data['layout']} and this CLI knows {LAYOUT}; use the CLI that wrote it",
                )
            processes = {name: ProcessRecord(**record) for name, record in data.pop("processes").items()}
            restarts = {name: Restarts(**done) for name, done in data.pop("restarts", {}).items()}
            return State(**{**data, "layout": LAYOUT}, processes=processes, restarts=restarts)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise _refusal(
                "STATE_OF_ANOTHER_USER", f"{file} belongs to another user; run as the user who started the stack"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _refusal(
                "STATE_UNREADABLE",
                f"{file} is damaged; stop what still runs, then remove {self.path} to begin anew, "
                "or restore that folder from a backup",
            ) from error

    def write(self, state: State) -> None:
        """Replace state.json as a whole: a reader sees the old one or the new one."""
        state.path = str(self.path.resolve())
        fresh = self.path / f".state.{os.getpid()}"
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(asdict(state), indent=2) + "\n")
        fresh.replace(self.path / "state.json")

    @contextmanager
    def exclusive(self, *, patience_s: float = HOLD_PATIENCE_S) -> Iterator[None]:
        """Hold the folder against every other process that would start or stop things in it.

        Args:
            patience_s: how long to wait for another process to let go.

        Raises:
            ServiceError: FAILED_PRECONDITION when another process holds it.
        """
        with (self.path / "lock").open("a+") as lock:
            if not _locked(lock, patience_s):
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise _refusal(
                    "DATA_DIR_IN_USE",
                    f"{self.path} is in use by process {holder}; wait for it, end it, or choose another --data-dir",
                )
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _locked(lock: IO[str], patience_s: float) -> bool:
    """Whether the file could be locked, tried for so long."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(HOLD_POLL_S)


@contextmanager
def temporary_folder(prefix: str = "comity-") -> Iterator[Path]:
    """A folder for stacks that is removed with all they stored.

    Other users may pass through it, as root's Postgres must; in an ordinary temporary directory, which is closed, that
    would keep its files outside, and nobody would remove them.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        Path(folder).chmod(0o711)
        try:
            yield Path(folder)
        finally:
            # Of a stack whose data directory is the folder itself.
            shutil.rmtree(f"{folder}.journal", ignore_errors=True)


def discard(data_dir: Path, *, keep_journal: bool = False) -> None:
    """Remove a stopped stack with all that it stored, also what lies outside its folder.

    Args:
        keep_journal: another copy of this stack will come in its place.

    Raises:
        ServiceError: FAILED_PRECONDITION when it runs, or is held by another process.
    """
    folder = DataDir(data_dir)
    if not folder.path.exists():
        return
    state = folder.read()
    with folder.exclusive():
        if state is not None:
            require_stopped(state, folder.path)
            if not keep_journal and (key := folder.journal_key) is not None:
                for file in (folder.journal() / file_name(key), folder.journal() / lock_name(key)):
                    file.unlink(missing_ok=True)
                with suppress(OSError):  # it is shared, or there is none
                    folder.journal().rmdir()
            shutil.rmtree(folder.postgres(state.stack_id), ignore_errors=True)
            shutil.rmtree(ROOT_HOME / state.stack_id, ignore_errors=True)
        shutil.rmtree(folder.path)


def require_stopped(state: State, path: Path) -> None:
    """Returns when nothing of the stack runs.

    Raises:
        ServiceError: FAILED_PRECONDITION (STACK_IS_UP).
    """
    running = [name for name, record in state.processes.items() if start_time(record.pid) == record.started]
    if running:
        raise _refusal("STACK_IS_UP", f"{', '.join(running)} of {path} still run; `comity down` first")


class Secrets:
    """Random keys and passwords, each a file that only its owner reads, made once."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = folder
        self._state = state

    def file(self, name: str) -> Path:
        """The secret's file, made if it never was.

        Raises:
            ServiceError: FAILED_PRECONDITION when it was made before and is gone: with a new pepper or key the data
                that is there could no longer be read, so nothing is made up.
        """
        file = self._folder / name
        if not file.exists():
            if name in self._state.secrets:
                raise _refusal(
                    "SECRET_MISSING",
                    f"{file} is gone, and the data was made with it; "
                    f"restore it, or remove {self._folder.parent} to begin anew",
                )
            self._write(file, secrets.token_hex(32))
        if name not in self._state.secrets:
            self._state.secrets.append(name)
        return file

    def text(self, name: str) -> str:
        """The secret itself: 64 hex digits."""
        return self.file(name).read_text().strip()

    def model_public_key(self) -> Path:
        """The file with the public half of the key that models are signed with: decision checks, and cannot sign."""
        file = self._folder / "model_public_key"
        self._write(file, public_hex("models", read_secret(self.file("model_key"))))
        return file

    def _write(self, file: Path, text: str) -> None:
        """Write the file whole, for its owner alone."""
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(text + "\n")
        fresh.replace(file)


def _refusal(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, reason, message)
