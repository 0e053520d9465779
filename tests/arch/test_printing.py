"""Everything that commands print goes through cli/output.py, which reads no markup in values and strips controls."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arch.code import ROOT, name_of, source_files, tree

OUTPUT = ROOT / "cli" / "output.py"
PRINTING = [path for path in source_files("cli") if path != OUTPUT]
TAG = re.compile(r"\[(?:bold|dim|italic|red|green|yellow|blue|cyan|magenta|white)\b[a-z ]*\]|\[/\]")


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in names:
                yield node


@pytest.mark.parametrize("path", PRINTING, ids=name_of)
def test_values_are_printed_by_the_one_helper(path: Path) -> None:
    """No console of its own, no markup read outside of `styled`, and `print` for fixed words alone."""
    wrong = [node.lineno for node in calls(path, "Console", "from_markup", "render_markup", "echo", "secho")]
    wrong += [
        node.lineno
        for node in calls(path, "print")
        if isinstance(node.func, ast.Name) and not all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    wrong += [
        keyword.value.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "markup" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert wrong == [], "print with console, errors, styled, write or print_json of cli/output.py"


@pytest.mark.parametrize("path", PRINTING, ids=name_of)
def test_style_is_a_literal_and_what_it_shows_a_value(path: Path) -> None:
    """`styled` takes a template of our own; a tag anywhere else is printed as it is."""
    templates = set()
    for call in calls(path, "styled"):
        assert isinstance(call.args[0], ast.Constant), f"line {call.lineno}: the template is a literal"
        templates.add(id(call.args[0]))
    tagged = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in templates
        and TAG.search(node.value)
    ]
    assert tagged == [], 'write styled("[red]{}[/]", value)'


@pytest.mark.parametrize("path", PRINTING, ids=name_of)
def test_parts_of_rich_that_read_markup_by_themselves_are_given_none(path: Path) -> None:
    """A column of a progress bar says markup=False, and a panel's title is styled: rich asks no console there."""
    for call in calls(path, "TextColumn"):
        assert any(keyword.arg == "markup" for keyword in call.keywords), f"line {call.lineno}"
    for call in calls(path, "Panel"):
        for keyword in call.keywords:
            if keyword.arg in ("title", "subtitle"):
                assert not isinstance(keyword.value, ast.Constant | ast.JoinedStr | ast.Attribute), (
                    f"line {call.lineno}"
                )
