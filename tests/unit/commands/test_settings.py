"""COMITY_* variables that a shell has and nothing reads: refused with the one that is meant."""

import json
import re
from pathlib import Path

import pytest
import typer

import cli
from cli.settings import KNOWN, require_known, require_known_of_services
from cli.stack import SERVICES
from services.chassis.settings import unknown_among


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meant"), [("COMITY_DATADIR", "COMITY_DATA_DIR"), ("COMITY_NATS_URI", "COMITY_NATS_URL")]
)
def test_misspelled_variable_ends_every_command(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line: a command that went on would act on another stack, or start one elsewhere."""
    monkeypatch.setenv(name, "/srv/shop")
    with pytest.raises(typer.Exit) as end:
        require_known()
    assert end.value.exit_code == 2
    assert f"{name} is no setting (did you mean {meant}?)" in said(capsys)


@pytest.mark.parametrize("service", SERVICES)
def test_misspelled_setting_of_a_service_is_refused_before_anything_starts(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each service, also where the setting is one that all have."""
    prefix = f"COMITY_{service.upper()}_"
    monkeypatch.setenv(f"{prefix}TRACE_RATE", "1")
    monkeypatch.setattr("sys.argv", ["comity", "up", "--json"])
    with pytest.raises(typer.Exit):
        require_known_of_services()
    error = json.loads(said(capsys))["error"]
    assert error["reason"] == "UNKNOWN_SETTING"
    assert f"{prefix}TRACE_RATE is no setting (did you mean {prefix}TRACE_RATIO?)" in error["message"]


def test_settings_that_there_are_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands, those that all services have, and one that only one service has."""
    for name in (*KNOWN, "COMITY_IDENTITY_LOG_LEVEL", "COMITY_DECISION_OFFERED_MAX", "COMITY_CONSENT_CONTROLLER"):
        monkeypatch.setenv(name, "x")
    require_known()
    require_known_of_services()


def test_every_variable_that_a_command_names_is_known() -> None:
    """What is read from the environment anywhere in cli/ is in the list, or its users would be refused."""
    root = Path(cli.__file__).parent
    text = "\n".join(file.read_text() for file in root.rglob("*.py"))
    named = set(re.findall(r"""["'](COMITY_[A-Z]+(?:_[A-Z]+)*)["']""", text))
    of_services = tuple(f"COMITY_{service.upper()}_" for service in SERVICES)
    assert named
    assert unknown_among((name for name in named if not name.startswith(of_services)), "COMITY_", KNOWN) == {}
