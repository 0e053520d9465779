"""The systemd unit that `comity service install` writes."""

import json
import shlex
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.stack.unit import environment_file, unit


def setting(text: str, name: str) -> str:
    """The value of the only line that sets the name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}=")]
    return line.partition("=")[2]


@pytest.mark.parametrize("folder", ["/srv/shop", "/srv/a shop", '/srv/100% "x" $HOME'])
def test_unit_runs_the_stack_in_the_foreground(folder: str) -> None:
    """Whatever the folder is called, systemd, which reads % and $ in its own way, is told that folder."""
    text = unit(Path(folder), Path(folder) / "service.env")
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(setting(text, "ExecStart"))]
    assert words == [sys.executable, "-m", "cli.main", "up", "--foreground", "--data-dir", folder]
    assert setting(text, "EnvironmentFile").replace("%%", "%") == f"-{folder}/service.env"
    assert setting(text, "Restart") == "on-failure"
    assert setting(text, "KillMode") == "mixed"


def test_settings_are_those_of_the_shell() -> None:
    """COMITY_* and nothing else; the data directory is the unit's."""
    shell = {"COMITY_NATS_URL": 'nats://u:a"b\\c@h', "COMITY_DATA_DIR": "/elsewhere", "HOME": "/root"}
    assert environment_file(shell) == 'COMITY_NATS_URL="nats://u:a\\"b\\\\c@h"\n'


def test_install_writes_unit_and_settings_and_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit holds no password; the file that does can be read by its owner alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COMITY_NATS_URL", "nats://u:hidden-word@bus.example")
    arguments = ["service", "install", f"--data-dir={tmp_path / 'data'}", "--name=shop", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["unit"] == str(tmp_path / "config/systemd/user/shop.service")
    assert "systemctl --user enable --now shop" in told["next"]
    assert "hidden-word" not in Path(told["unit"]).read_text() + done.stdout
    assert "hidden-word" in Path(told["settings"]).read_text()
    assert stat.S_IMODE(Path(told["settings"]).stat().st_mode) == 0o600


def test_printing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--print shows what would be written."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    done = CliRunner().invoke(app, ["service", "install", "--print", "--data-dir", str(tmp_path / "data")])
    assert done.stdout.count("ExecStart=") == 1
    assert list(tmp_path.iterdir()) == []


def test_name_that_would_be_a_path_is_refused(tmp_path: Path) -> None:
    """A unit lies among the user's units and nowhere else."""
    done = CliRunner().invoke(app, ["service", "install", "--name=../x", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "--name" in done.stderr
