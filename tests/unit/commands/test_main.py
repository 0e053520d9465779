"""The command line as a whole: its version, its groups, its completion."""

import os
import re
import subprocess
import sys

from typer.testing import CliRunner

from cli.main import GROUPS, app
from cli.stack.version import code_version


def test_version_says_which_code_it_is() -> None:
    """Release and digest: in a checkout the release alone says little."""
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"comity {code_version()}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", code_version())


def test_help_shows_every_command_in_a_group() -> None:
    """Nobody has to read thirty commands to find the one for them."""
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(group in shown for group in GROUPS)
    assert {one.rich_help_panel for one in app.registered_commands} <= GROUPS.keys()
    assert {one.rich_help_panel for one in app.registered_groups} <= GROUPS.keys()


def test_shell_completes_commands() -> None:
    """What a shell asks when somebody presses Tab after `comity st`."""
    asked = {"_COMITY_COMPLETE": "complete_bash", "COMP_WORDS": "comity st", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked}, timeout=60)
    assert done.stdout.split() == ["status"]
