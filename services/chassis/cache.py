"""Redis or Valkey as a ports.Cache: calls that wait leave as one pipeline, replies never go astray."""

from collections.abc import Mapping, Sequence

# The version in front of a value of set_newer_many.
VERSION_BYTES = 8


def split_version(stored: bytes) -> tuple[int, bytes]:
    """Version and value of what set_newer_many stored and get returned."""
    return int.from_bytes(stored[:VERSION_BYTES], "big"), stored[VERSION_BYTES:]


class RedisCache:
    """ports.Cache; get returns values of set_newer_many with their version in front (split_version).

    Args:
        url: redis:// address.
        prefix: put in front of every key, e.g. "features:"; no two services share one.
        timeout_s: after which a batch is given up and its connection closed.
        connections_max: of the pool.
    """

    def __init__(self, url: str, *, prefix: str, timeout_s: float = 0.25, connections_max: int = 8) -> None:
        raise NotImplementedError

    async def get(self, key: str) -> bytes | None:
        """See ports.Cache."""
        raise NotImplementedError

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See ports.Cache."""
        raise NotImplementedError

    async def set_many(self, values: Mapping[str, bytes], *, ttl_s: float | None = None) -> None:
        """See ports.Cache."""
        raise NotImplementedError

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]]) -> None:
        """See ports.Cache."""
        raise NotImplementedError

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ports.Cache."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections."""
        raise NotImplementedError
