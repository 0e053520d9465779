"""Which users root's processes are, and what is left to them."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.stack.users import give, is_root, launcher, service_uid

CAP_DAC_READ_SEARCH = 2
PR_CAPBSET_DROP = 24
WITHOUT_THE_RIGHT = f"""
import ctypes
ctypes.CDLL(None).prctl({PR_CAPBSET_DROP}, {CAP_DAC_READ_SEARCH}, 0, 0, 0)
from cli.stack.users import service_uid
print(service_uid())
"""

pytestmark = pytest.mark.skipif(not is_root() or service_uid() is None, reason="only root becomes somebody else")


def as_service(code: str) -> subprocess.CompletedProcess[str]:
    """The code, run as a service's user."""
    command = [*launcher(service_uid(), reads_all=True), sys.executable, "-c", code]
    return subprocess.run(command, input="g", capture_output=True, text=True, timeout=60)


def test_service_user_reads_what_root_may_and_writes_its_own_alone(tmp_path: Path) -> None:
    """Code and secrets lie where nobody else may enter; nothing but its folders is its to change."""
    closed, own = tmp_path / "closed", tmp_path / "closed" / "own"
    own.mkdir(parents=True)
    (closed / "secret").write_text("read")
    for path in (closed / "secret", own, closed):
        path.chmod(0o700)
    uid = service_uid()
    assert uid is not None
    give(own, uid)
    assert as_service(f"print(open('{closed}/secret').read()); open('{own}/file', 'w')").stdout == "read\n"
    assert (own / "file").stat().st_uid == uid
    for refused in (f"open('{closed}/secret', 'a')", f"open('{closed}/new', 'w')", "import os; os.setuid(0)"):
        assert "PermissionError" in as_service(refused).stderr


def test_service_user_has_one_right_of_roots() -> None:
    """The one to read: whatever else it calls or starts has no more."""
    status = dict(
        line.split(":\t") for line in as_service("print(open('/proc/self/status').read())").stdout.split("\n") if line
    )
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")] == [1 << CAP_DAC_READ_SEARCH] * 3


def test_services_stay_root_where_the_right_cannot_be_given() -> None:
    """As in a container that was started without it: they work, and nobody is told that they are somebody else."""
    said = subprocess.run([sys.executable, "-c", WITHOUT_THE_RIGHT], capture_output=True, text=True, timeout=60)
    assert said.stdout == "None\n", said.stderr
