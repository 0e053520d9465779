"""Whether the servers of a stack let its services work, before it is started or beside it; changes nothing."""

import asyncio
from pathlib import Path

from cli.stack.external import external_urls, is_known_here, server_problems, shown
from cli.stack.state import DataDir, State


async def try_connections(data_dir: Path) -> dict[str, list[str]]:
    """For each server that the environment names, or else the stack in the folder has, what is wrong with it.

    Returns:
        By name and address of the server: sentences; none where all is well.

    Raises:
        ServiceError: FAILED_PRECONDITION when the stack's state cannot be read.
    """
    state = DataDir(data_dir).read() or State(stack_id="")
    named = {**state.urls, **external_urls()}
    urls = {name: url for name, url in named.items() if is_known_here(name, url, state.external)}
    found = await asyncio.gather(*(server_problems(name, url, state.databases) for name, url in urls.items()))
    return {f"{name} at {shown(url)}": problems for (name, url), problems in zip(urls.items(), found, strict=True)}
