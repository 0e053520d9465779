"""What a service takes from its environment, and what of it may be seen."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from services.chassis.lifecycle import load
from services.chassis.settings import ServiceSettings, read_secret, unknown_settings


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="COMITY_SAMPLE_")
    pepper_file: Path


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    secret = tmp_path / "pepper"
    secret.write_bytes(b"s" * 32 + b"\n")
    monkeypatch.setenv("COMITY_SAMPLE_DATABASE_URL", "postgresql://user:password@host/db")
    monkeypatch.setenv("COMITY_SAMPLE_NATS_URL", "nats://token@host:4222")
    monkeypatch.setenv("COMITY_SAMPLE_PEPPER_FILE", str(secret))
    return secret


def test_settings_come_from_the_environment_of_the_service(environment: Path) -> None:
    """Each service reads its own prefix; everything else has a default."""
    settings = load(Settings)
    assert settings.database_url.get_secret_value() == "postgresql://user:password@host/db"
    assert settings.pepper_file == environment
    assert (settings.drain_s, settings.trace_ratio, settings.metrics_port) == (5.0, 1.0, 0)


def test_settings_do_not_change(environment: Path) -> None:
    """They are frozen."""
    with pytest.raises(ValidationError):
        load(Settings).listen = "0.0.0.0:1"


def test_what_is_logged_holds_no_secret(environment: Path) -> None:
    """Neither the password nor the token of a URL is shown."""
    shown = str(load(Settings).public())
    assert "password" not in shown
    assert "token" not in shown
    assert "host:4222" in shown


@pytest.mark.parametrize("special", "#/?[@")
def test_what_is_logged_holds_no_part_of_a_password_that_is_not_encoded(
    environment: Path, monkeypatch: pytest.MonkeyPatch, special: str
) -> None:
    """A URL that cannot be read as one is masked all the same."""
    monkeypatch.setenv("COMITY_SAMPLE_NATS_URL", f"nats://user:hun{special}ter@one:4222,nats://user:x@two:4222")
    assert load(Settings).public()["nats_url"] == "nats://***@one:4222,nats://***@two:4222"


def test_every_wrong_variable_is_named_and_no_value_shown(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person sees what to set, and a log never what was set."""
    monkeypatch.delenv("COMITY_SAMPLE_NATS_URL")
    monkeypatch.setenv("COMITY_SAMPLE_TRACE_RATIO", "hunter2")
    with pytest.raises(ValueError, match="COMITY_SAMPLE_NATS_URL: Field required") as caught:
        load(Settings)
    assert "COMITY_SAMPLE_TRACE_RATIO: " in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_secret_file_must_hold_a_secret(environment: Path) -> None:
    """A missing or short one is refused when the settings are loaded, not at the first use."""
    environment.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"COMITY_SAMPLE_PEPPER_FILE: .*has 5 bytes; 32 to 4096 are allowed"):
        load(Settings)
    environment.unlink()
    with pytest.raises(ValueError, match=r"COMITY_SAMPLE_PEPPER_FILE: .*cannot be read"):
        load(Settings)


def test_a_secret_is_read_without_its_newline(environment: Path) -> None:
    """Editors put one at the end."""
    assert read_secret(environment) == b"s" * 32


def test_variable_that_is_no_setting_is_named_with_the_one_that_is_meant() -> None:
    """With the service's prefix, in whichever case; others are other services', or nobody's."""
    variables = [
        "COMITY_SAMPLE_NATS_URL",
        "comity_sample_drain_s",
        "COMITY_SAMPLE_TRACE_RATE",
        "COMITY_SAMPLE_ZZZ",
        "COMITY_OTHER_TYPO",
        "HOME",
    ]
    found = unknown_settings(Settings, variables)
    assert found == {"COMITY_SAMPLE_TRACE_RATE": "COMITY_SAMPLE_TRACE_RATIO", "COMITY_SAMPLE_ZZZ": ""}


@pytest.mark.parametrize(
    "changes", [{"trace_ratio": 1.5}, {"metrics_port": 70000}, {"log_level": "loud"}, {"drain_s": -1}]
)
def test_settings_out_of_bounds_are_refused(changes: dict[str, object]) -> None:
    """Every number has a bound."""
    with pytest.raises(ValidationError):
        ServiceSettings(database_url=SecretStr("x"), nats_url="x", **changes)  # type: ignore[arg-type]
