"""Servers that somebody else runs, named by their address in the environment: used, never started or stopped."""

import asyncio
import os
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from services.chassis.errors import Kind, ServiceError

VARIABLES = {"postgres": "COMITY_POSTGRES_URL", "nats": "COMITY_NATS_URL", "valkey": "COMITY_REDIS_URL"}
DEFAULT_PORTS = {"postgres": 5432, "nats": 4222, "valkey": 6379}
CONNECT_TIMEOUT_S = 5.0


def external_urls() -> dict[str, str]:
    """Address of each server that is not ours to run, by its name."""
    return {name: os.environ[variable] for name, variable in VARIABLES.items() if os.environ.get(variable)}


async def reachable(name: str, url: str) -> bool:
    """Whether something accepts connections at the address."""
    host, port = _host_port(name, url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (OSError, TimeoutError):
        return False
    return True


async def require_reachable(name: str, url: str) -> None:
    """Returns when the server can be reached.

    Raises:
        ServiceError: UNAVAILABLE, with the variable to correct.
    """
    if not await reachable(name, url):
        host, port = _host_port(name, url)
        raise ServiceError(
            Kind.UNAVAILABLE,
            "EXTERNAL_SERVER_UNREACHABLE",
            f"nothing answers at {host}:{port}; start that server, correct {VARIABLES[name]}, or unset it",
        )


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
        if bool(before) == bool(now) and (not now or _host_port(name, before) == _host_port(name, now)):
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
    """The address without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _host_port(name: str, url: str) -> tuple[str, int]:
    """Where to connect.

    Raises:
        ServiceError: INVALID when the address has no host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ServiceError(Kind.INVALID, "INVALID_URL", f"{VARIABLES[name]}: not an address; give scheme://host:port")
    return host, port or DEFAULT_PORTS[name]
