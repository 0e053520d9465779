"""What a docstring says of arguments is so: people call what they read."""

import ast
import re
from collections.abc import Iterator

from tests.arch.code import PACKAGES, name_of, source_files, tree

_SECTION = re.compile(r"^ *Args:\n((?:(?: {4,}.*)?\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


def documented(docstring: str) -> Iterator[str]:
    """The names that its Args section begins a line with."""
    for section in _SECTION.finditer(docstring + "\n"):
        entries = list(_ENTRY.finditer(section[1]))
        shallowest = min((len(entry["indent"]) for entry in entries), default=0)
        for entry in entries:
            if len(entry["indent"]) == shallowest:
                yield from (name.lstrip("*") for name in entry["names"].split(", "))


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """The arguments of a function; of a class those of __init__, and the fields that it declares."""
    if isinstance(node, ast.ClassDef):
        fields = {
            one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
        inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return fields.union(*map(arguments, inits))
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return {one.arg for one in every}


def test_every_documented_argument_exists() -> None:
    """One that was renamed or removed is removed from the docstring too."""
    unknown = [
        f"{name_of(path)}:{node.lineno} {node.name}: {name}"
        for path in source_files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for name in documented(ast.get_docstring(node) or "")
        if name not in arguments(node)
    ]
    assert unknown == []
