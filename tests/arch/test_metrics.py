"""A process shows the metrics that it has, and no other service's as zero."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from tests.arch.code import ROOT, SERVICES, source_files, tree

# What prometheus_client itself registers in every process.
OF_THE_LIBRARY = ("python_", "process_")
SHOWN = (
    "import {module}; from prometheus_client import REGISTRY; print(*(m.name for m in REGISTRY.collect()), sep='\\n')"
)


def declared(module: str) -> dict[str, MetricWrapperBase]:
    """The metrics of a module, by the name of their constant."""
    found = vars(importlib.import_module(module))
    return {name: value for name, value in found.items() if isinstance(value, MetricWrapperBase)}


def shown_names(module: str) -> set[str]:
    return {described.name for metric in declared(module).values() for described in metric.describe()}


def users(constant: str) -> set[str]:
    """The parts of services (a service, or the chassis) that use a metric."""
    return {
        path.relative_to(ROOT / "services").parts[0]
        for path in source_files("services")
        if path.name != "metrics.py" and any(_names(node) == constant for node in ast.walk(tree(path)))
    }


def _names(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_process_shows_its_own_metrics_alone() -> None:
    """In a process of its own, as it is deployed: those of every service and those of this one."""
    command = [sys.executable, "-c", SHOWN.format(module="services.identity.main")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = {name for name in printed.split() if not name.startswith(OF_THE_LIBRARY)}
    assert shown == shown_names("services.chassis.metrics") | shown_names("services.identity.metrics")


@pytest.mark.parametrize("service", SERVICES)
def test_metric_of_one_service_is_declared_there(service: str) -> None:
    """Registered by import, and services never import each other: so no other process has it."""
    assert {name: users(name) for name in declared(f"services.{service}.metrics")} == {
        name: {service} for name in declared(f"services.{service}.metrics")
    }


def test_metric_that_every_process_has_is_of_no_single_service() -> None:
    """What the chassis does not count itself, and no two services do, belongs to the one that does."""
    used = {name: users(name) for name in declared("services.chassis.metrics")}
    assert {name: by for name, by in used.items() if "chassis" not in by and len(by) < 2} == {}


def test_metrics_are_declared_in_their_modules_alone() -> None:
    """Whoever looks for what is counted looks there."""
    kinds = {"Counter", "Gauge", "Histogram", "Summary"}
    elsewhere = [
        path
        for path in source_files("services")
        if path.name != "metrics.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and _names(node.func) in kinds and _is_of_prometheus(path)
    ]
    assert elsewhere == []


def _is_of_prometheus(path: Path) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == "prometheus_client" for node in ast.walk(tree(path)))
