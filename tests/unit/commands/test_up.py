"""What `comity up` tells of where services listen."""

from pathlib import Path

from cli.stack.status import Part, StackStatus
from cli.up import moved


def test_a_service_that_is_not_where_backends_look_is_named() -> None:
    """What listens where it always does needs no word; nor does a server, which has no usual port."""
    parts = (
        Part("postgres", "up", "127.0.0.1:20000", pid=1),
        Part("decision", "up", "127.0.0.1:20001", pid=2),
        Part("identity", "up", "127.0.0.1:7071", pid=3),
        Part("feedback", "down", ""),
    )
    (line,) = moved(StackStatus(Path("/there"), parts))
    assert line.startswith("decision is at 127.0.0.1:20001 and not at its usual port 7070")
