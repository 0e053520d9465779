"""TELEMETRY.md names every span, attribute and metric that the code makes, and no other."""

import ast
import importlib
import re
from collections.abc import Iterator

from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from prometheus_client.metrics import MetricWrapperBase

from services.chassis import tracing
from services.chassis.span_export import ALLOWED_NAMES, ALLOWED_PREFIXES
from tests.arch.code import ROOT, SERVICES, source_files, tree

PAGE = (ROOT / "TELEMETRY.md").read_text()
# Functions that begin a span whose name is their first argument, and stages of a Decide.
BEGIN = {"span", "root_span", "consumer_span", "start_span", "start_as_current_span"}
STAGE = "within"
# Where the functions above are defined, and hand a name on.
HANDED_ON = {"services/chassis/tracing.py", "services/decision/handlers/stages.py"}


def told(heading: str) -> set[str]:
    """What the first column of the tables below a heading names."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def begun() -> Iterator[str]:
    """The names of the spans that the code begins; `<…>` stands for what varies."""
    for path in source_files("services"):
        if str(path.relative_to(ROOT)) in HANDED_ON:
            continue
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == STAGE:
                yield "decision." + ast.literal_eval(node.args[0])
            elif called in BEGIN:
                yield _name(node.args[0], path.name)


def _name(argument: ast.expr, where: str) -> str:
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    if isinstance(argument, ast.JoinedStr):
        parts = argument.values
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "<>" for part in parts)
    # The one name that is put into a variable first, because two places use it.
    assert (where, ast.unparse(argument)) == ("gather.py", "name"), f"{where}: name the span where it is begun"
    return "gather <>"


def constants() -> set[str]:
    """The attributes that are declared."""
    found = vars(tracing)
    own = {value for name, value in found.items() if name.startswith(("COMITY_", "MESSAGING_"))}
    return own | {ERROR_TYPE}


def test_every_span_is_on_the_page() -> None:
    """And the page names none that nobody begins."""
    assert {re.sub(r"<\w+>", "<>", name) for name in told("Spans")} == set(begun())


def test_every_attribute_is_on_the_page_and_leaves_the_process() -> None:
    """A declared attribute that the exporter does not let out would be searched for in vain."""
    assert told("Attributes") == constants()
    assert [name for name in constants() if not (name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES))] == []


def test_every_declared_attribute_is_used() -> None:
    """A name that nothing is put under is searched for in vain, too."""
    used = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for path in source_files("services")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load)
    }
    declared = {name for name in vars(tracing) if name.startswith(("COMITY_", "MESSAGING_"))}
    assert declared - used == set()


def test_every_metric_is_on_the_page_as_it_describes_itself() -> None:
    """Name, type, labels and meaning: what a scrape says is what the page says."""
    modules = ["services.chassis.metrics", *(f"services.{service}.metrics" for service in SERVICES)]
    rows = {
        _row(metric)
        for module in modules
        for metric in vars(importlib.import_module(module)).values()
        if isinstance(metric, MetricWrapperBase)
    }
    section = PAGE.split("\n## Metrics\n")[1]
    assert {line for line in section.splitlines() if line.startswith("| `")} == rows


def _row(metric: MetricWrapperBase) -> str:
    (described,) = metric.describe()
    name = described.name + ("_total" if described.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {described.type} | {labels} | {described.documentation} |"
