"""The client for programs without an event loop, such as Flask or Django: the same calls, each waiting for its answer.

The calls themselves are those of ComityClient, on one event loop of the process, in a thread of its own.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from comity_client.client import ComityClient
from comity_client.consent import Consent

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


# Process id → its event loop, in a thread that lives as long; a child that was forked begins its own.
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, with the caller's context variables."""
    loop = _loops.get(os.getpid()) or _begin()
    return asyncio.run_coroutine_threadsafe(work, loop).result()


def _begin() -> asyncio.AbstractEventLoop:
    new = asyncio.new_event_loop()
    # No lock, which a fork could leave locked for ever: of two threads that come at once, one sets its loop.
    loop = _loops.setdefault(os.getpid(), new)
    if loop is new:
        threading.Thread(target=new.run_forever, name="comity-client", daemon=True).start()
    else:
        new.close()
    return loop


class _Blocking(Generic[C]):
    def __init__(self, inner: C) -> None:
        self._inner = inner


def _blocking(method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The method, waiting for what it gives."""

    @functools.wraps(method)
    def call(self: _Blocking[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(method(self._inner, *args, **kwargs))

    return call


class SyncConsent(_Blocking[Consent]):
    """Consent, each call waiting for its answer; SyncComityClient.consent."""

    record = _blocking(Consent.record)
    revoke = _blocking(Consent.revoke)
    object = _blocking(Consent.object)
    history = _blocking(Consent.history)


class SyncComityClient(_Blocking[ComityClient]):
    """ComityClient, each call waiting for its answer: one for the life of the process, for all its threads.

    Args:
        client: one that is not used elsewhere.

    Attributes:
        consent: the ledger: record, revoke, object, history.
    """

    decide = _blocking(ComityClient.decide)
    track = _blocking(ComityClient.track)
    track_many = _blocking(ComityClient.track_many)
    identify = _blocking(ComityClient.identify)

    def __init__(self, client: ComityClient) -> None:
        super().__init__(client)
        self.consent = SyncConsent(client.consent)

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """As of ComityClient."""
        return self._inner.counts

    def __enter__(self) -> "SyncComityClient":
        _run(self._inner.__aenter__())
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls in flight, and those after it, give the default."""
        _run(self._inner.close())
