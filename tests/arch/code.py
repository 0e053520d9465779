"""The project's own source, as the architecture tests read it."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import services

ROOT = Path(services.__file__).parents[1]
SERVICES = ("identity", "consent", "features", "decision", "feedback")
PACKAGES = ("services", "learning", "cli", "bench", "clients/python/comity_client")


def source_files(*folders: str) -> list[Path]:
    """Every Python file below the folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def domain_files() -> list[Path]:
    """Every file of every service's domain, be it a module or a package."""
    return [path for path in source_files("services") if "domain" in (path.parent.name, path.stem)]


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    """The file as a person would name it."""
    return str(path.relative_to(ROOT))


def service_modules() -> Iterator[ModuleType]:
    """Every module below services, imported."""
    for found in pkgutil.walk_packages(services.__path__, "services."):
        yield importlib.import_module(found.name)
