"""Whether the CEL of a policy compiles, and where it does not. Evaluating rules is decision's."""

import re
from functools import cache

from cel_expr_python import cel

# What a rule may read; services/decision compiles with the same names.
VARIABLES = {"eligibility": ("item", "context"), "audience": ("context", "level")}


@cache
def _environment(rule: str) -> cel.Env:
    facts = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
    types = {"item": facts, "context": facts, "level": cel.Type.STRING}
    return cel.NewEnv(variables={name: types[name] for name in VARIABLES[rule]})


def rule_problem(rule: str, text: str) -> str | None:
    """What is wrong with an `eligibility` or `audience` rule, and where inside it; None when nothing is."""
    try:
        expression = _environment(rule).compile(text)
    except RuntimeError as error:
        return _readable(str(error))
    kind = expression.return_type().name()
    return None if kind in ("bool", "BOOL", "dyn", "DYN") else f"gives {kind.lower()}, not true or false"


def _readable(error: str) -> str:
    """`INVALID_ARGUMENT: ERROR: <input>:1:4: undeclared …` → `at line 1, column 4: undeclared …`."""
    found = re.search(r"<input>:(\d+):(\d+): ([^\n]*)", error)
    if not found:
        return error.splitlines()[0]
    line, column, what = found.groups()
    return f"at line {line}, column {column}: {what.removesuffix(' [INVALID_ARGUMENT]')}"
