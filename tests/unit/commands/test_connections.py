"""Where commands find the services: as told, else in the environment, else in the stack that runs here."""

from pathlib import Path

import pytest

from cli.connections import Services, resolve_addresses
from cli.stack import SERVICES
from services.chassis.errors import ServiceError


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICES:
        monkeypatch.delenv(f"COMITY_{name.upper()}_ADDRESS", raising=False)


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address on the command line wins; the others come from the environment."""
    monkeypatch.setenv("COMITY_DECISION_ADDRESS", "a:1")
    monkeypatch.setenv("COMITY_CONSENT_ADDRESS", "b:2")
    found = resolve_addresses(tmp_path, ["decision=c:3"])
    assert found == {"decision": "c:3", "consent": "b:2"}


@pytest.mark.parametrize("text", ["decision", "decision=nowhere", "shop=a:1", "=a:1"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """What does not name a service and host:port is refused with how to write it."""
    with pytest.raises(ServiceError, match="SERVICE=HOST:PORT"):
        resolve_addresses(tmp_path, [text])


def test_without_a_stack_it_is_said_how_to_start_one(tmp_path: Path) -> None:
    """Nothing given and nothing running ends with what to do."""
    with pytest.raises(ServiceError, match="comity up"):
        resolve_addresses(tmp_path)


async def test_a_service_without_an_address_is_named() -> None:
    """Asking for a service that was not given says which option is missing."""
    async with Services({"decision": "127.0.0.1:1"}) as services:
        assert services.decision is not None
        with pytest.raises(ServiceError, match="--address consent=HOST:PORT"):
            _ = services.consent
