"""`comity demo --quick`: the whole main job in small, with nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.stack import temporary_folder

DEMO_S = 240
STOP_S = 60
POLL_S = 0.1
ROOT = Path(__file__).parents[2]


def demo(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "cli.main", "demo", "--quick", "--data-dir", str(folder), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def processes_of(folder: Path) -> list[str]:
    """Whatever still runs with the folder in its command line or environment."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            told = [*(process.info["cmdline"] or []), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in told):
            found.append(f"{process.pid} {process.info['cmdline']}")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for a stack, removed after the test."""
    with temporary_folder("comity-demo-") as parent:
        yield parent / "demo"


@pytest.fixture
def _heeded() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C; children of the test are to hear it all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_quick_demo_holds_and_leaves_nothing_running(folder: Path) -> None:
    """It ends with 0, its summary has what is promised, and no process of it is left."""
    with demo(folder, "--json") as running:
        out, err = running.communicate(timeout=DEMO_S)
    assert running.returncode == 0, err.decode()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(out)
    assert set(summary) == {
        "decisions",
        "replayed_identical",
        "no_consent_defaults",
        "revoked_defaults",
        "click_rate",
        "latency_ms",
        "ranklens",
    }
    assert summary["decisions"] == summary["replayed_identical"] > 200
    assert summary["no_consent_defaults"] > 0
    assert summary["revoked_defaults"] > 0
    assert set(summary["click_rate"]) == {"ranked", "holdout", "optimum"}
    assert set(summary["latency_ms"]) == {"p50", "p99"}
    assert summary["ranklens"] is None
    assert processes_of(folder) == []


@pytest.mark.usefixtures("_heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle ends it at once, and everything that it started."""
    with demo(folder) as running:
        family = stack_of(running)
        running.send_signal(number)
        running.communicate(timeout=STOP_S)
        assert running.returncode in (130, 143)
        _, alive = psutil.wait_procs(family, timeout=STOP_S)
        assert alive == []
        assert processes_of(folder) == []


def stack_of(running: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Every process below the demo, once the servers and the five services are among them."""
    until = time.monotonic() + DEMO_S
    while True:
        family = psutil.Process(running.pid).children(recursive=True)
        if sum(is_service(process) for process in family) == 5:
            return family
        assert running.poll() is None
        assert time.monotonic() < until, "the stack did not start"
        time.sleep(POLL_S)


def is_service(process: psutil.Process) -> bool:
    """Whether it is one of the five."""
    try:
        return any(word.startswith("services.") for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
