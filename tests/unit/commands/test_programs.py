"""What a process of the embedded stack is told by its environment."""

from importlib import import_module
from pathlib import Path

import pytest

from cli.stack.programs import CACHED, SECRETS, Surroundings, environment
from cli.stack.provision import SERVICES
from services.chassis.settings import ServiceSettings

PASSWORD = "canary"
AROUND = Surroundings(
    addresses=dict.fromkeys(SERVICES, "127.0.0.1:1"),
    databases={name: f"postgres://comity_{name}:{PASSWORD}-{name}@127.0.0.1/comity_{name}" for name in SERVICES},
    nats_url="nats://127.0.0.1:2",
    redis_url=f"redis://:{PASSWORD}-cache@127.0.0.1:3/0",
    traces=Path("/traces"),
    logs=Path("/logs"),
    secret_files={name: Path("/secrets") / name for names in SECRETS.values() for name in names.values()},
    journal=Path("/journal"),
)


def settings_of(service: str) -> type[ServiceSettings]:
    module = import_module(f"services.{service}.main")
    (found,) = {
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, ServiceSettings) and one is not ServiceSettings
    }
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_told_no_secret_that_it_does_not_read(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own database's address, the cache's where it opens it, its own secrets: and none that the stack was told."""
    administrators = ("COMITY_POSTGRES_URL", "COMITY_REDIS_URL", "COMITY_NATS_URL")
    others = [f"COMITY_{name.upper()}_DATABASE_URL" for name in SERVICES if name != service]
    for name in (*administrators, *others, "COMITY_SOMETHING"):
        monkeypatch.setenv(name, f"{PASSWORD}-{name}")
    told = environment(service, "127.0.0.1:0", AROUND)
    held = {name for name, value in told.items() if PASSWORD in value or value.startswith("/secrets")}
    prefix = f"COMITY_{service.upper()}_"
    cache = {f"{prefix}REDIS_URL"} if service in CACHED else set()
    secrets = {f"{prefix}{name}" for name in SECRETS.get(service, ())}
    assert held == {f"{prefix}DATABASE_URL"} | cache | secrets
    fields = settings_of(service).model_fields
    assert {name.removeprefix(prefix).lower() for name in held} <= set(fields)


def test_what_is_set_for_one_service_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of its own, and what may be set for all at once; other programs' stay as they are."""
    monkeypatch.setenv("COMITY_FEATURES_POOL_SIZE", "9")
    monkeypatch.setenv("COMITY_LOG_LEVEL", "debug")
    monkeypatch.setenv("PGSSLMODE", "require")
    told = environment("features", "127.0.0.1:0", AROUND)
    assert told["COMITY_FEATURES_POOL_SIZE"] == "9"
    assert told["COMITY_FEATURES_LOG_LEVEL"] == "debug"
    assert told["PGSSLMODE"] == "require"
    assert "COMITY_FEATURES_POOL_SIZE" not in environment("identity", "127.0.0.1:0", AROUND)
