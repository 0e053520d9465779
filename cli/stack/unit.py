"""A systemd user unit that keeps a stack up: what is in it. Pure."""

import sys
from collections.abc import Mapping
from pathlib import Path

from cli.stack.programs import ROOT
from cli.stack.state import DATA_DIR_VARIABLE

# Longer than a stop may take: each of the servers and services has twenty seconds before it is killed.
STOP_TIMEOUT_S = 120

TEMPLATE = """\
# Written by `comity service install`; run it again to change what is here.
[Unit]
Description=Comity: the stack in {folder}

[Service]
ExecStart={command}
WorkingDirectory={root}
EnvironmentFile=-{environment}
Restart=on-failure
RestartSec=5
# A stop is told to the supervisor, which stops everything in order.
KillMode=mixed
TimeoutStopSec={stop_timeout_s}
# One service that the kernel ends for its memory is started again by the supervisor; the others go on.
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


def unit(folder: Path, environment: Path) -> str:
    """The unit that runs the stack in the folder.

    Args:
        environment: file with the settings, which may hold passwords; a unit may be read by everybody.
    """
    command = (sys.executable, "-m", "cli.main", "up", "--foreground", "--data-dir", str(folder))
    return TEMPLATE.format(
        folder=_specifiers(str(folder)),
        command=" ".join(_quoted(word) for word in command),
        root=_specifiers(str(ROOT)),
        environment=_specifiers(str(environment)),
        stop_timeout_s=STOP_TIMEOUT_S,
    )


def environment_file(variables: Mapping[str, str]) -> str:
    """COMITY_* of the variables, as an EnvironmentFile= holds them; which data directory it is says the unit."""
    return "".join(
        f"{name}={_escaped(value)}\n"
        for name, value in sorted(variables.items())
        if name.startswith("COMITY_") and name != DATA_DIR_VARIABLE
    )


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line: ExecStart= also puts variables in the place of $."""
    return _specifiers(_escaped(word).replace("$", "$$"))


def _escaped(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
