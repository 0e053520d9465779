"""No channel goes through a proxy: what a shell has for the web must not stand between two processes of a stack."""

import ast
import importlib
import operator
from pathlib import Path
from typing import Any

import pytest

from tests.arch.code import PACKAGES, ROOT, name_of, source_files, tree

# Calls that make a channel, and the argument that holds its options.
MAKERS = {"insecure_channel": "options", "secure_channel": "options", "OTLPSpanExporter": "channel_options"}
NO_PROXY = ("grpc.enable_http_proxy", 0)
# They read http_proxy unless told otherwise; nothing here needs them.
WEB_CLIENTS = ("urllib.request", "http.client", "requests", "httpx", "aiohttp")


def channels(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and _called(node) in MAKERS]


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def options(path: Path, call: ast.Call) -> Any:
    """The options that the call is given: a constant of its module, or one that it imports."""
    given = {argument.arg: argument.value for argument in call.keywords}.get(MAKERS[_called(call)])
    if not isinstance(given, ast.Name | ast.Attribute):
        return ()
    folder = ROOT / "clients" / "python" if "comity_client" in path.parts else ROOT
    module = importlib.import_module(".".join(path.relative_to(folder).with_suffix("").parts))
    return operator.attrgetter(ast.unparse(given))(module)


FILES = [path for path in source_files(*PACKAGES, "tests") if channels(path)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_channel_never_uses_a_proxy(path: Path) -> None:
    """Whatever makes a channel gives it options that switch the proxy of the environment off."""
    through_a_proxy = [call.lineno for call in channels(path) if NO_PROXY not in options(path, call)]
    assert through_a_proxy == []


def test_channels_are_found() -> None:
    """The sweep sees the places that are known to make channels."""
    assert {name_of(path) for path in FILES} >= {
        "services/chassis/rpc_client.py",
        "services/chassis/telemetry.py",
        "cli/stack/probe.py",
        "clients/python/comity_client/transport.py",
    }


def test_nothing_talks_http_by_a_client_that_reads_the_proxy() -> None:
    """There is no HTTP client; whoever adds one decides about proxies here."""
    imported = {
        (name_of(path), name)
        for path in source_files(*PACKAGES, "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.startswith(WEB_CLIENTS)
    }
    assert imported == set()
