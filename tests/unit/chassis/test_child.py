"""What a child process that tries something tells of it, and of the machine."""

import os
import signal
import sys

import pytest

from services.chassis.child import begin, in_child, say
from services.chassis.errors import Kind, ServiceError


@pytest.mark.parametrize("end", [signal.SIGXCPU, signal.SIGSEGV])
def test_child_that_its_data_ended_tells_how_far_it_came(end: signal.Signals) -> None:
    """Its limits and its crashes are the data's doing."""
    said = in_child(__name__, str(int(end)), data=b"", timeout_s=60, reason="NOT_TRIED")
    assert (said.lines, said.status) == (["reading"], -end)


def test_child_that_was_killed_says_nothing_of_its_data() -> None:
    """A machine without memory kills it: to be tried again, not remembered."""
    with pytest.raises(ServiceError, match="killed") as raised:
        in_child(__name__, str(int(signal.SIGKILL)), data=b"", timeout_s=60, reason="NOT_TRIED")
    assert (raised.value.kind, raised.value.reason) == (Kind.UNAVAILABLE, "NOT_TRIED")


if __name__ == "__main__":
    begin()
    say("reading")
    os.kill(os.getpid(), int(sys.argv[1]))
