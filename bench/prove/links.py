"""The lines between the processes of a stack, each a link that can be cut: who calls what, and by which setting."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from bench.prove.proxy import Link
from cli.stack.replicas import replica_names, service_of

# Setting that tells a service where it finds what it calls.
SETTINGS: Mapping[str, str] = {
    "postgres": "DATABASE_URL",
    "nats": "NATS_URL",
    "valkey": "REDIS_URL",
    "identity": "IDENTITY_ADDRESS",
    "consent": "CONSENT_ADDRESS",
    "features": "FEATURES_ADDRESS",
}
# What a Decide or a change of consent goes over.
CALLS: Mapping[str, Sequence[str]] = {
    "identity": ("postgres",),
    "consent": ("postgres", "nats", "identity"),
    "features": ("postgres", "valkey", "nats"),
    "decision": ("postgres", "nats", "identity", "consent", "features"),
}
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


class Links:
    """A link for each line; `links["decision-2", "consent"]` is one of them."""

    def __init__(self, links: Mapping[tuple[str, str], Link]) -> None:
        self._links = links

    def __getitem__(self, line: tuple[str, str]) -> Link:
        return self._links[line]

    def of(self, service: str, called: str) -> list[Link]:
        """The lines of all of a service's processes to what they call."""
        return [link for (name, other), link in self._links.items() if service_of(name) == service and other == called]

    def heal(self) -> None:
        """Let everything through."""
        for link in self._links.values():
            link.heal()

    def redirect(self, name: str, env: Mapping[str, str]) -> dict[str, str]:
        """The process' environment with its calls led over its links, which learn from it where they lead."""
        changed = dict(env)
        for called in CALLS.get(service_of(name), ()):
            key = f"COMITY_{service_of(name).upper()}_{SETTINGS[called]}"
            link = self._links[name, called]
            found = _ADDRESS.search(env[key])
            assert found is not None, f"{key} names an address"
            link.target = found[0]
            changed[key] = _ADDRESS.sub(f"127.0.0.1:{link.port}", env[key], count=1)
        return changed


@asynccontextmanager
async def lines(replicas: Mapping[str, int]) -> AsyncIterator[Links]:
    """Links for a stack with these replicas; they must be there before its services start."""
    async with AsyncExitStack() as held:
        links: dict[tuple[str, str], Link] = {}
        for service, called in CALLS.items():
            for name in replica_names(service, replicas.get(service, 1)):
                for other in called:
                    links[name, other] = await held.enter_async_context(Link())
        yield Links(links)
