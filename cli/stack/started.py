"""What every process of a stack was started with, code and settings: so `up` and `status` tell what is outdated.

A file of its own beside state.json, where a field that an older CLI does not know would look like damage to it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.stack.binaries import versions
from cli.stack.processes import ProcessRecord
from cli.stack.replicas import service_of
from cli.stack.servers import SERVERS
from cli.stack.state import DATA_DIR_VARIABLE, SUPERVISOR
from cli.stack.version import code_version

DIGEST_LETTERS = 16


@dataclass(frozen=True, slots=True)
class Started:
    """How a process was started.

    Args:
        process: when, as its ProcessRecord says; one that is recorded with another time was started by a CLI that does
            not write this.
        version: of the code, or of a server's wheel.
        settings: digest of each setting by its variable; the values may be secrets.
        foreground: in a terminal of somebody, who also starts it again.
    """

    process: str
    version: str
    settings: Mapping[str, str]
    foreground: bool = False


def started_with(name: str, record: ProcessRecord, env: Mapping[str, str], *, foreground: bool = False) -> Started:
    """How the process is started now, with this environment."""
    if name in SERVERS:
        return Started(record.started, versions().get(name, ""), {})
    prefix = "COMITY_" if name == SUPERVISOR else f"COMITY_{service_of(name).upper()}_"
    settings = {
        variable: hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:DIGEST_LETTERS]
        for variable, value in env.items()
        if variable.startswith(prefix) and variable != DATA_DIR_VARIABLE
    }
    return Started(record.started, code_version(), settings, foreground)


def differences(was: Started | None, now: Started) -> list[str]:
    """What is not as it was, a phrase each; None where an earlier release started it. Pure."""
    if was is None:
        return ["an earlier release started it"]
    found = [] if was.version == now.version else [f"version {was.version} is now {now.version}"]
    for variable in sorted({*was.settings, *now.settings}):
        before, after = was.settings.get(variable), now.settings.get(variable)
        if before != after:
            found.append(
                f"{variable} {'is set' if before is None else 'is not set any more' if after is None else 'changed'}"
            )
    return found


class StartedFile:
    """`started.json` of a data directory; changed under the folder's lock, read by anybody who may."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "started.json"

    def of(self, name: str, record: ProcessRecord) -> Started | None:
        """How the process was started; None where nothing is known of it."""
        found = self._read().get(name)
        return found if found is not None and found.process == record.started else None

    def put(self, name: str, started: Started | None) -> None:
        """Keep it in the place of what was said of that name; None: nothing is."""
        kept = {**self._read(), name: started}
        said = {name: asdict(one) for name, one in kept.items() if one is not None}
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(said, indent=2) + "\n")
        fresh.replace(self._file)

    def _read(self) -> dict[str, Started]:
        """What is kept; nothing where it cannot be read, as if an earlier release had started all of it."""
        try:
            return {name: Started(**one) for name, one in json.loads(self._file.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
