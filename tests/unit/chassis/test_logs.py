"""What a log line may hold."""

import ast
import contextvars
import errno
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import services
from services.chassis import tracing
from services.chassis.errors import Kind, ServiceError
from services.chassis.logs import (
    ALLOWED_FIELDS,
    LIBRARIES,
    UNKNOWN_LIBRARY,
    describe_error,
    name_span,
    only_allowed,
    setup_logs,
)
from tests.traced import Traced


@pytest.fixture
def configured() -> Iterator[None]:
    root, silenced = logging.getLogger(), logging.getLogger("opentelemetry")
    handlers, level = root.handlers[:], root.level
    yield
    silenced.setLevel(logging.NOTSET)
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
    """Which library, where in it, and a sentence of ours: its own text may hold values, template or not."""
    setup_logs("sample", "debug")
    logging.getLogger("lib").warning("cannot take %s", "person@example.com", extra={"reason": "AWAY", "who": "Ann"})
    logging.getLogger("redis.connection").error(f"cannot send {'person@example.com'}")
    logging.getLogger("lib").info("chatter")
    first, second = lines(capsys)
    assert (first["event"], first["logger"], first["level"]) == (UNKNOWN_LIBRARY, "lib", "warning")
    assert first["reason"] == "AWAY"
    assert str(first["where"]).startswith("unit/chassis/test_logs.py:")
    assert (second["event"], second["logger"]) == (LIBRARIES["redis"], "redis.connection")
    assert not {"Ann", "person", "%"} & set(re.findall(r"Ann|person|%", str(first) + str(second)))


@pytest.mark.parametrize(
    "logger", ["opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal"]
)
def test_library_whose_troubles_we_tell_says_nothing(
    configured: None, capsys: pytest.CaptureFixture[str], logger: str
) -> None:
    """Spans that are not exported are an alarm, told once; the exporter's own line came with every try."""
    setup_logs("sample", "debug")
    logging.getLogger(logger).error("Failed to export %s to %s, error code: %s", "traces", "collector:4317", "AWAY")
    assert lines(capsys) == []


def test_what_our_own_code_logs_by_the_standard_library_is_whole(
    configured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules that commands use as well log so; their texts are ours."""
    setup_logs("sample", "info")
    logging.getLogger("services.chassis.rpc_client").warning("%s is tried again", "decision.Replay")
    (line,) = lines(capsys)
    assert line["event"] == "decision.Replay is tried again"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/person"), "No space left on device"),
        (
            OSError("127.0.0.1:80 cannot be listened on; is it in use?"),
            "127.0.0.1:80 cannot be listened on; is it in use?",
        ),
        (TimeoutError(), None),
        (ValueError("person"), None),
    ],
)
def test_error_of_the_system_says_what_it_was(error: Exception, text: str | None) -> None:
    """`builtins.OSError` alone helps nobody; what the system says of it holds nothing that was sent."""
    assert describe_error(None, "", {"exc_info": error})["error"].get("text") == text


def test_line_names_the_span_that_it_is_from() -> None:
    """Of a sampled call its logs are found by its trace, also those told when it is over; of others there is none."""
    traced = Traced()
    try:
        assert "trace_id" not in name_span(None, "", {})
        with tracing.root_span("call") as span:
            told_later = contextvars.copy_context()
        line = told_later.run(name_span, None, "", {})
    finally:
        traced.telemetry.shutdown()
    context = span.get_span_context()
    assert line == {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    assert only_allowed(None, "", dict(line)) == line


# What the chassis itself puts on a line.
EVERY_LINE = {"dropped", "error", "event", "level", "logger", "service", "span_id", "timestamp", "trace_id"}


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
