"""Eligibility and audience rules: CEL expressions, compiled once, that say yes or no and never guess.

A rule that cannot be evaluated (a missing key, a wrong type, CEL's iteration budget) is an ERROR, which its reader
treats as an exclusion: an error is never a grant. What a rule reads of the context is known when it is compiled, so
that exactly that is logged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any

from cel_expr_python import cel

from services.decision.domain.site import Context, Item
from services.decision.domain.vocabulary import Level

_POSITION = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
PROBLEM_CHARACTERS_MAX = 200
_ENGINE_CODE = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$| \(in container '.*'\)")
# What the compiler says → what is meant, and what to do.
_TOLD = tuple(
    (re.compile(pattern), said, remedy)
    for pattern, said, remedy in (
        (r"(?:mismatched|extraneous) input '<EOF>'", "the rule ends too early", "write the rest of it"),
        (
            r"(?:mismatched|extraneous) input ('.*?') expecting",
            r"\1 does not belong here",
            "remove it, or what is before",
        ),
        (r"token recognition error at", "no rule has such a character, or a text does not end", "close the quotes"),
        (r"recursion limit exceeded", "it nests too deep", "use fewer brackets inside each other"),
        (
            r"(?=.*\bdouble\b)(?=.*\bint\b)(found no matching overload .*)",
            r"\1; attributes are doubles: write 10.0, not 10",
            "compare numbers with numbers, and texts with texts",
        ),
    )
)
# Enough of CEL's lexicon to find names: strings are skipped, so that a quoted "context" is no reading of it.
_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*)"""
    r"""|(?P<string>[rR]?(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"))"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<sign>[.\[\](){},])""",
    re.DOTALL,
)
_PLAIN_STRING = re.compile(r"""["'][^"'\\]*["']""")
# CEL's macros that evaluate a part of a rule once an element.
_COMPREHENSION = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
# What they may run over, in a source without comments and with zeros for strings.
_VALUE = r"-?(?:\d[\w.]*+|true|false|null)\s*+"
_BOUNDED = re.compile(
    r"(?:(?<![.\w`])item\s*\.\s*categories(?:\s*\.\s*\w+|\s*\[\s*\w+\s*\])?"
    rf"|(?:^|\bin|[(,&|!?:=<>+\-*/%\[{{])\s*\[\s*(?P<values>(?:{_VALUE}(?:,\s*{_VALUE})*,?)?)\s*\])\s*$"
)
LITERAL_VALUES_MAX = 32
COMPREHENSIONS_DEEP_MAX = 2


class Verdict(Enum):
    """What a rule says."""

    YES = "yes"
    NO = "no"
    ERROR = "error"


class Scope(Enum):
    """What a rule depends on, and so how often it must be asked."""

    ITEM = "item"
    CONTEXT = "context"
    BOTH = "both"


class RuleError(ValueError):
    """A rule that must not decide: where it is wrong, what is wrong with it, and what to do about it."""

    def __init__(self, line: int, column: int, problem: str, remedy: str = "mend the rule") -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule.

    Args:
        context_keys: what it reads of the context; nothing else is given to it.
        stopped: it takes too much time or memory to be evaluated, and is an ERROR without being asked.
    """

    source: str
    scope: Scope
    context_keys: frozenset[str]
    _expression: cel.Expression
    stopped: bool = False

    def about_item(self, item: Item) -> Verdict:
        """What an ITEM rule says of the item."""
        return self._evaluate(_item_data(item))

    def about_context(self, context: Context, level: Level = Level.UNSPECIFIED) -> Verdict:
        """What a CONTEXT rule says of the request."""
        return self._evaluate(self._context_data(context) | {"level": level.name})

    def about(self, item: Item, context: Context) -> Verdict:
        """What a rule of any scope says of the item in this request."""
        return self._evaluate(_item_data(item) | self._context_data(context))

    def attempt(self, item: Item, context: Context, level: Level) -> None:
        """Evaluate the rule on all that any rule reads.

        Raises:
            Exception: whatever the binding raises.
        """
        self._expression.eval(data=_item_data(item) | self._context_data(context) | {"level": level.name})

    def _context_data(self, context: Context) -> dict[str, Any]:
        return {"context": {key: context[key] for key in self.context_keys if key in context}}

    def _evaluate(self, data: Mapping[str, Any]) -> Verdict:
        if self.stopped:
            return Verdict.ERROR
        try:
            value = self._expression.eval(data=data)
            if value.type() != cel.Type.BOOL:
                return Verdict.ERROR
            return Verdict.YES if value.value() else Verdict.NO
        except Exception:  # whatever the binding raises: one rule must not take an answer or the catalog with it
            return Verdict.ERROR


def compile_eligibility(source: str) -> Rule:
    """The rule over `item` (id, categories, attributes) and `context`.

    Raises:
        RuleError: it does not compile, says no yes or no, or reads the context other than by a literal key.
    """
    expression = _compile(_environment(item=True, context=True, level=False), source)
    scope = Scope.BOTH
    if _compiles(_environment(item=True, context=False, level=False), source):
        scope = Scope.ITEM
    elif _compiles(_environment(item=False, context=True, level=False), source):
        scope = Scope.CONTEXT
    return Rule(source, scope, context_keys_of(source), expression)


def compile_audience(source: str) -> Rule:
    """The rule over `context` and `level`.

    Raises:
        RuleError: as of compile_eligibility.
    """
    expression = _compile(_environment(item=False, context=True, level=True), source)
    return Rule(source, Scope.CONTEXT, context_keys_of(source), expression)


def require_bounded(source: str) -> None:
    """That the steps of evaluating the rule are bounded by what it reads and not by what it builds.

    Raises:
        RuleError: a comprehension runs over anything but item.categories or a short list of values, or they are nested
            too deep.
    """
    code = _code_of(source)
    remedy = f"run over item.categories, one of its lists, or at most {LITERAL_VALUES_MAX} values written in brackets"
    ends: list[int] = []
    for match in _COMPREHENSION.finditer(code):
        over = _BOUNDED.search(code, 0, match.start())
        line, column = code.count("\n", 0, match.start()) + 1, match.start() - code.rfind("\n", 0, match.start())
        if over is None:
            raise RuleError(line, column, "a comprehension runs over what has no bound", remedy)
        if (over["values"] or "").count(",") >= LITERAL_VALUES_MAX:
            raise RuleError(line, column, "a comprehension runs over too many values", remedy)
        ends = [end for end in ends if end > match.start()] + [_closing(code, match.end())]
        if len(ends) > COMPREHENSIONS_DEEP_MAX:
            problem = f"comprehensions are nested more than {COMPREHENSIONS_DEEP_MAX} deep"
            raise RuleError(line, column, problem, "nest fewer of them")


def _code_of(source: str) -> str:
    """The source with a blank for each character of a comment and zeros for strings; places stay what they are."""
    fill = {"comment": " ", "string": "0"}
    return _TOKEN.sub(
        lambda match: (
            re.sub(r"[^\n]", fill[match.lastgroup], match.group()) if match.lastgroup in fill else match.group()
        ),
        source,
    )


def _closing(code: str, start: int) -> int:
    """Where the parenthesis closes that was opened before *start*."""
    depth = 1
    for place in range(start, len(code)):
        depth += {"(": 1, ")": -1}.get(code[place], 0)
        if depth == 0:
            return place
    return len(code)


def context_keys_of(source: str) -> frozenset[str]:
    """The context keys that a rule names: `context.key` and `context["key"]`.

    Raises:
        RuleError: the context is read as a whole or by a computed key: it could not be said what must be logged.
    """
    matches = [match for match in _TOKEN.finditer(source) if match.lastgroup != "comment"]
    tokens = [(match.lastgroup, match.group(), match.start()) for match in matches]
    tokens += [(None, "", len(source))] * 3
    keys = set()
    for index, (kind, text, start) in enumerate(tokens[:-3]):
        if kind != "name" or text != "context" or (index > 0 and tokens[index - 1][1] == "."):
            continue
        (_, first, _), (kind_2, second, _), (_, third, _) = tokens[index + 1 : index + 4]
        if first == "." and kind_2 == "name" and third != "(":
            keys.add(second)
        elif first == "[" and third == "]" and _PLAIN_STRING.fullmatch(second):
            keys.add(second[1:-1])
        else:
            line = source.count("\n", 0, start) + 1
            column = start - source.rfind("\n", 0, start)
            raise RuleError(line, column, 'read the context by name: context.key or context["key"]')
    return frozenset(keys)


def attributes_of(source: str) -> frozenset[tuple[str, str]]:
    """What a rule that compiles reads of items by name: ("attributes" or "categories", the name)."""
    tokens = [match for match in _TOKEN.finditer(source) if match.lastgroup != "comment"]
    texts = [match.group() for match in tokens] + [""] * 3
    read = set()
    for k, group in enumerate(texts[:-3]):
        if group not in ("attributes", "categories") or texts[max(k - 2, 0) : k] != ["item", "."]:
            continue
        sign, name, end = texts[k + 1 : k + 4]
        if sign == "[" and end == "]" and _PLAIN_STRING.fullmatch(name):
            read.add((group, name[1:-1]))
        elif sign == "." and not source[tokens[k + 2].end() :].lstrip().startswith("("):
            read.add((group, name))
    return frozenset(read)


def names_of(source: str) -> frozenset[str]:
    """Every name that a rule reads, of items and of the context alike, whether it compiles or not.

    That is each identifier and each plain string in brackets; other strings are values, and comments are nothing.
    """
    tokens = [match for match in _TOKEN.finditer(source) if match.lastgroup != "comment"]
    names = {match.group() for match in tokens if match.lastgroup == "name"}
    for before, match in pairwise(tokens):
        if before.group() == "[" and _PLAIN_STRING.fullmatch(match.group()):
            names.add(match.group()[1:-1])
    return frozenset(names)


def texts_of(source: str) -> frozenset[str]:
    """Every text that a rule holds, names in brackets and values alike, as it is written between its quotes."""
    texts = (match.group() for match in _TOKEN.finditer(source) if match.lastgroup == "string")
    return frozenset(text.lstrip("rR").strip("\"'") for text in texts)


@cache
def _environment(*, item: bool, context: bool, level: bool) -> cel.Env:
    """The variables a rule may read. Dotted names are variables of their own, so that each has a checked type."""
    variables = {}
    if item:
        variables["item.id"] = cel.Type.STRING
        variables["item.categories"] = cel.Type.Map(cel.Type.STRING, cel.Type.List(cel.Type.STRING))
        variables["item.attributes"] = cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE)
    if context:
        variables["context"] = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
    if level:
        variables["level"] = cel.Type.STRING
    return cel.NewEnv(variables=variables)


def _compile(environment: cel.Env, source: str) -> cel.Expression:
    try:
        expression = environment.compile(source)
    except RuntimeError as error:  # the binding raises nothing narrower
        raise _rule_error(str(error)) from error
    if expression.return_type() not in (cel.Type.BOOL, cel.Type.DYN):
        raise RuleError(1, 1, f"a rule must say true or false, this gives {expression.return_type().name()}")
    return expression


def _compiles(environment: cel.Env, source: str) -> bool:
    try:
        environment.compile(source)
    except RuntimeError:
        return False
    return True


def _rule_error(message: str) -> RuleError:
    """The first error of a compiler's message, with its place, in words that need no knowledge of the compiler."""
    found = _POSITION.search(message)
    line, column, problem = (1, 1, message) if found is None else (int(found[1]), int(found[2]), found[3])
    for pattern, said, remedy in _TOLD:
        if (told := pattern.search(problem)) is not None:
            return RuleError(line, column, told.expand(said), remedy)
    # A code of the engine before and behind it says nothing to anybody.
    return RuleError(line, column, _ENGINE_CODE.sub("", problem.partition("\n")[0])[:PROBLEM_CHARACTERS_MAX])


def _item_data(item: Item) -> dict[str, Any]:
    return {
        "item.id": item.id,
        "item.categories": {name: list(values) for name, values in item.categories.items()},
        "item.attributes": dict(item.numbers),
    }
