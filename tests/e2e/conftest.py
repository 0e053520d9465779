"""One real stack for all end-to-end tests of a pytest process, with the shop applied to it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cli.bundle import apply_bundle
from cli.connections import Services
from cli.stack import Stack, budgets, discard
from tests.e2e.people import Person, ranking_shop

# A busy machine must not turn a test of what is decided into one of how fast; deadlines have tests of their own.
ROOMY = budgets(1000)
# Every service runs as in a company that reaches the web by a proxy; nothing answers at this one.
DEAD_PROXY = {
    **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "no_grpc_proxy", "NO_PROXY"), ""),
}


async def _start(stack: Stack) -> None:
    await stack.start()
    await _apply(stack)


async def _apply(stack: Stack) -> None:
    async with Services(stack.addresses) as services:
        await apply_bundle(ranking_shop(), services)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Five services on real servers, all data thrown away at the end."""
    folder = Path(tempfile.mkdtemp(prefix="comity-e2e-"))
    running = Stack(folder / "stack", disposable=True, env={"*": DEAD_PROXY, **ROOMY})
    try:
        asyncio.run(_start(running))
        yield running
    finally:
        asyncio.run(running.stop())
        discard(folder / "stack")
        folder.rmdir()


@pytest.fixture
def site_restored(stack: Stack) -> Iterator[None]:
    """For tests that apply another site: afterwards it is again the one that all others count on."""
    yield
    asyncio.run(_apply(stack))


@pytest.fixture
async def services(stack: Stack) -> AsyncIterator[Services]:
    """Stubs of the stack's services on the test's own loop, connected."""
    async with Services(stack.addresses, model_key=stack.data_dir.model_key) as stubs:
        for name in stack.addresses:
            await stubs.warm(name)
        yield stubs


@pytest.fixture
def person(services: Services) -> Person:
    """Somebody new, who was never asked for consent."""
    return Person(services)


@pytest.fixture
async def willing(services: Services) -> Person:
    """Somebody new, who agreed to everything."""
    somebody = Person(services)
    await somebody.grant()
    return somebody
