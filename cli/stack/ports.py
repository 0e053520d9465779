"""Loopback ports that nobody listens on."""

import random
import socket

LOOPBACK = "127.0.0.1"

# Below the range that the kernel gives to outgoing connections (32768 and up on Linux): a client's
# connection can then never take the port of a server that is just being restarted.
PORTS = range(15_000, 32_000)
TRIES_MAX = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without it, connections of an earlier server that linger in TIME_WAIT would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now; drawn at random, so that stacks that start together seldom meet."""
    for _ in range(TRIES_MAX):
        port = random.choice(PORTS)
        if is_free(port):
            return port
    raise OSError(f"no free port in {PORTS.start}-{PORTS.stop} after {TRIES_MAX} tries")
