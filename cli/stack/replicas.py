"""Names of a service's processes: the first is named like the service, the others are numbered from two."""

from collections.abc import Collection, Mapping, Sequence

from cli.stack.provision import SERVICES
from services.chassis.errors import Kind, ServiceError

# Beyond this a machine that runs everything shows nothing that fewer would not show.
REPLICAS_MAX = 16


def replica_names(service: str, count: int) -> list[str]:
    """Names of *count* processes of the service."""
    return [service, *(f"{service}-{number}" for number in range(2, count + 1))]


def service_of(name: str) -> str:
    """The service that a process of this name is."""
    return name.partition("-")[0]


def in_order(names: Collection[str]) -> list[str]:
    """Those of *names* that are processes of a service, in the order in which services are started."""
    return [name for service in SERVICES for name in names if service_of(name) == service]


def check_replicas(replicas: Mapping[str, int]) -> None:
    """Returns when each is a service and a count that can be started.

    Raises:
        ServiceError: INVALID, naming what is wrong.
    """
    for service, count in replicas.items():
        if service not in SERVICES or not 1 <= count <= REPLICAS_MAX:
            raise ServiceError(
                Kind.INVALID,
                "REPLICAS_INVALID",
                f"replicas: {service}={count}; give one of {', '.join(SERVICES)} a count from 1 to {REPLICAS_MAX}",
            )


def target(ports: Sequence[int]) -> str:
    """What a gRPC channel is given to reach whoever listens on these loopback ports: calls go to each in turn."""
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return hosts[0] if len(hosts) == 1 else f"ipv4:{','.join(hosts)}"
