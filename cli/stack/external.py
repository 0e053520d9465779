"""Servers that somebody else runs, named by their address in the environment: used, never started or stopped."""

import asyncio
import os
from collections.abc import Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.chassis.errors import Kind, ServiceError
from services.chassis.nats_files import NatsFiles
from services.chassis.settings import addresses_in

VARIABLES = {"postgres": "COMITY_POSTGRES_URL", "nats": "COMITY_NATS_URL", "valkey": "COMITY_REDIS_URL"}
DEFAULT_PORTS = {"postgres": 5432, "nats": 4222, "valkey": 6379}
CONNECT_TIMEOUT_S = 5.0
# Beside COMITY_NATS_URL; services have the same settings.
NATS_FILES = {"NATS_CA_FILE": "ca", "NATS_CERT_FILE": "certificate", "NATS_KEY_FILE": "key"} | {
    "NATS_CREDENTIALS_FILE": "credentials"
}


def external_urls() -> dict[str, str]:
    """Address of each server that is not ours to run, by its name."""
    return {name: os.environ[variable] for name, variable in VARIABLES.items() if os.environ.get(variable)}


async def reachable(name: str, url: str) -> bool:
    """Whether something accepts connections at the address, or at one of those that it names."""
    for host, port in _host_ports(name, url):
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
            return True
        except (OSError, TimeoutError):
            continue
    return False


def is_known_here(name: str, url: str, external: Collection[str]) -> bool:
    """Whether it is known here with what the services ask the server at the address.

    The certificates and credentials for a NATS that somebody else runs are named beside its address, so in that shell.

    Args:
        external: names of the stack's servers that somebody else runs.
    """
    return name != "nats" or name not in external or external_urls().get(name) == url


def nats_files() -> dict[str, Path]:
    """Certificates and credentials for the NATS that somebody else runs, by setting; the services run elsewhere."""
    if not os.environ.get(VARIABLES["nats"]):
        return {}
    given = {name: os.environ.get(f"COMITY_{name}", "") for name in NATS_FILES}
    return {name: Path(path).absolute() for name, path in given.items() if path}


async def server_problems(name: str, url: str, databases: Mapping[str, str]) -> list[str]:
    """What keeps the services from working with a server, a sentence each; it changes nothing there.

    Args:
        url: of postgres the administrator's.
        databases: each service's address of its own database; empty where there is none yet.
    """
    # Only here: the clients of three servers take longer to load than most commands take.
    from services.chassis.cache import try_cache
    from services.chassis.nats_connection import try_bus
    from services.chassis.postgres import try_database

    if name == "postgres":
        asked = {VARIABLES[name]: url, **{f"{service}'s DATABASE_URL": its for service, its in databases.items()}}
        tries = [try_database(its, provisions=who == VARIABLES[name]) for who, its in asked.items()]
        found = await asyncio.gather(*map(_problem, tries))
        return [problem.replace("DATABASE_URL", who) for who, problem in zip(asked, found, strict=True) if problem]
    if name == "valkey":
        return list(filter(None, [await _problem(try_cache(url, prefix="features:"))]))
    given = nats_files() if external_urls().get(name) == url else {}
    files = NatsFiles(**{NATS_FILES[setting]: path for setting, path in given.items()})
    return list(filter(None, [await _problem(try_bus(url, files))]))


async def _problem(trying: Coroutine[Any, Any, None]) -> str:
    """What a try came to; empty: all is well."""
    try:
        await trying
    except ServiceError as error:
        return error.message
    return ""


async def require_reachable(name: str, url: str) -> None:
    """Returns when the server can be reached, and lets us work with it.

    Raises:
        ServiceError: UNAVAILABLE, with the variable to correct.
    """
    if not await reachable(name, url):
        asked = " or ".join(f"{host}:{port}" for host, port in _host_ports(name, url))
        raise ServiceError(
            Kind.UNAVAILABLE,
            "EXTERNAL_SERVER_UNREACHABLE",
            f"nothing answers at {asked}; start that server, correct {VARIABLES[name]}, or unset it",
        )
    problems = await server_problems(name, url, {})
    if problems:
        raise ServiceError(Kind.UNAVAILABLE, "EXTERNAL_SERVER_REFUSES", " ".join(problems))


def require_same(state_urls: Mapping[str, str], was_external: Collection[str], external: Mapping[str, str]) -> None:
    """Returns when every server is the one that the stack had before, if it had one.

    Args:
        state_urls: of each server at the last start; empty at the first.
        was_external: names of those that somebody else ran then.
        external: those that somebody else runs now.

    Raises:
        ServiceError: FAILED_PRECONDITION, with both addresses of each that is another.
    """
    problems = []
    for name, url in state_urls.items():
        before = url if name in was_external else ""
        now = external.get(name, "")
        if bool(before) == bool(now) and (not now or set(_host_ports(name, before)) & set(_host_ports(name, now))):
            continue
        was = f"at {shown(before)}" if before else f"embedded, at {shown(url)}"
        would = f"at {shown(now)}" if now else "an embedded one"
        again = f"set {VARIABLES[name]} as it was" if before else f"unset {VARIABLES[name]}"
        problems.append(f"{name} of this stack is {was} and would now be {would} ({again})")
    if problems:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "SERVERS_MOVED",
            f"{'; '.join(problems)}. What is recorded would be left behind there; "
            "`comity up --move-servers` goes on with what the other one holds",
        )


def shown(url: str) -> str:
    """The address, or each of several, without user and password."""
    parts = [urlsplit(one) for one in addresses_in(url)]
    return ",".join(f"{one.scheme}://{one.netloc.rpartition('@')[2]}" for one in parts)


def _host_ports(name: str, url: str) -> list[tuple[str, int]]:
    """Where to connect: to one of these.

    Raises:
        ServiceError: INVALID when the address has no host.
    """
    found = []
    try:
        for one in addresses_in(url):
            # Postgres puts several hosts into one address: postgresql://user@one:5432,two:5432/database.
            for host in urlsplit(one).netloc.rpartition("@")[2].split(","):
                parts = urlsplit(f"//{host}")
                found.append((parts.hostname or "", parts.port or DEFAULT_PORTS[name]))
    except ValueError:
        found = []
    if not found or not all(host for host, _ in found):
        raise ServiceError(Kind.INVALID, "INVALID_URL", f"{VARIABLES[name]}: not an address; give scheme://host:port")
    return found
