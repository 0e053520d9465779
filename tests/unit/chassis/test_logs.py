"""What a log line may hold."""

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import services
from services.chassis.errors import Kind, ServiceError
from services.chassis.logs import ALLOWED_FIELDS, describe_error, only_allowed, setup_logs


@pytest.fixture
def configured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object(configured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Level, time and service are on every one; below the level nothing is logged."""
    setup_logs("sample", "info")
    log = structlog.get_logger()
    log.info("serving", port=1)
    log.debug("unheard")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["service"], line["port"]) == ("serving", "info", "sample", 1)
    assert str(line["timestamp"]).endswith("Z")


def test_fields_that_are_not_allowed_are_dropped_by_name() -> None:
    """A new field is not logged before somebody has allowed it, and is seen to be missing."""
    line = only_allowed(None, "", {"event": "x", "email": "person@example.com", "port": 1})
    assert line == {"event": "x", "port": 1, "dropped": ["email"]}


def test_texts_are_bounded() -> None:
    """One line cannot fill the disk."""
    assert only_allowed(None, "", {"event": "x" * 5000})["event"] == "x" * 300


def test_an_exception_is_logged_by_type_and_place() -> None:
    """Its text may hold what was sent, and so may that of its cause; ours does not."""

    def fail() -> None:
        try:
            raise KeyError("person@example.com")
        except KeyError as error:
            raise ServiceError(Kind.INVALID, "WRONG", "a sentence of ours") from error

    with pytest.raises(ServiceError) as caught:
        fail()
    line = describe_error(None, "", {"event": "x", "exc_info": caught.value})
    assert "person" not in json.dumps(line)
    assert line["error"]["type"] == "services.chassis.errors.ServiceError"
    assert line["error"]["text"] == "a sentence of ours"
    assert line["error"]["cause"]["type"] == "builtins.KeyError"
    assert line["error"]["frames"][-1].endswith(" fail")
    assert not line["error"]["frames"][-1].startswith("/")


def test_what_a_library_logs_comes_without_its_values(configured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a library's line the template's first line is kept; what is below warning is not kept at all."""
    setup_logs("sample", "debug")
    logging.getLogger("lib").warning("cannot take %s", "person@example.com", extra={"reason": "AWAY", "who": "Ann"})
    logging.getLogger("lib").error("Task failed\nfuture: person@example.com")
    logging.getLogger("lib").info("chatter")
    first, second = lines(capsys)
    assert (first["event"], first["logger"], first["level"]) == ("cannot take %s", "lib", "warning")
    assert first["reason"] == "AWAY"
    assert "Ann" not in str(first)
    assert second["event"] == "Task failed"


# What the chassis itself puts on a line.
EVERY_LINE = {"dropped", "error", "event", "level", "logger", "service", "timestamp"}


def _fields_logged(path: Path) -> set[str]:
    """Names of the fields that the module's log lines give."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    levels = {"debug", "info", "warning", "error", "exception"}
    return {
        keyword.arg or "**"
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in levels
        if isinstance(call.func.value, ast.Name) and call.func.value.id in ("_log", "log", "_logger")
        for keyword in call.keywords
    }


def test_what_is_logged_is_allowed_and_nothing_else_is() -> None:
    """Nobody finds out from a missing field that it had to be declared, and no name waits for what it might let out."""
    logged = set().union(*(_fields_logged(path) for path in Path(services.__path__[0]).rglob("*.py")))
    assert logged | EVERY_LINE == ALLOWED_FIELDS | {"exc_info"}
