"""Every service is the same files, so that knowing one is knowing five."""

import ast

import pytest

from tests.arch.code import PACKAGES, ROOT, SERVICES, name_of, source_files, tree

PARTS = {"main", "service", "handlers", "store", "wire", "domain", "metrics", "migrations"}
OPTIONAL = {"subscribers", "clients", "ranker", "rule_trial"}
FRONT_DOOR = ("owns", "answers", "emits", "consumes")
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_parts_and_no_others(service: str) -> None:
    """A reader finds each thing under the name it has in every other service."""
    folder = ROOT / "services" / service
    found = {path.stem for path in folder.iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert found >= PARTS
    assert found <= PARTS | OPTIONAL


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_says_at_the_door_what_it_is_for(service: str) -> None:
    """The package's docstring tells what it owns, answers, emits and consumes."""
    text = (ast.get_docstring(tree(ROOT / "services" / service / "__init__.py")) or "").lower()
    assert [word for word in FRONT_DOOR if word not in text] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_contract_and_its_lock(service: str) -> None:
    """Protos and pins of a service lie where its name says."""
    assert (ROOT / f"protos/comity/{service}/v1/{service}_service.proto").is_file()
    assert (ROOT / f"protos/comity/{service}/v1/{service}_events.proto").is_file()
    assert (ROOT / f"locks/{service}.txt").is_file()


@pytest.mark.parametrize("service", SERVICES)
def test_migrations_are_numbered_without_gaps(service: str) -> None:
    """Each file name begins with the next number, so that two people cannot both add number five unseen."""
    names = sorted(path.name for path in (ROOT / "services" / service / "migrations").glob("*.sql"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_every_module_says_what_it_is() -> None:
    """The first thing in every file is a docstring."""
    assert not [name_of(path) for path in source_files(*PACKAGES) if not ast.get_docstring(tree(path))]


def test_no_module_holds_two_ideas() -> None:
    """A file beyond 600 lines is to become a package."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in source_files(*PACKAGES, "tests")}
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_function_holds_two_ideas() -> None:
    """A function beyond 70 lines is to be split."""
    long = {
        f"{name_of(path)}:{node.name}": (node.end_lineno or 0) - node.lineno
        for path in source_files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    }
    assert long == {}
