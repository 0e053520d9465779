"""Domains are pure: time and chance are arguments. What they import is .importlinter's; this is what they call."""

import ast
from collections.abc import Iterator

from tests.arch.code import domain_files, name_of, tree

CLOCKS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
}  # fmt: skip
# A generator without a seed draws from the machine.
DICE = {"default_rng", "Generator", "Philox", "PCG64", "SeedSequence", "Random", "SystemRandom"}
# What numpy.random draws with a generator of the process.
LEGACY_DICE = {"random", "rand", "randn", "randint", "choice", "shuffle", "permutation", "uniform", "normal", "seed"}


def test_domains_exist() -> None:
    """The tests below read something."""
    assert len(domain_files()) >= 5


def test_domains_read_no_clock_and_roll_no_dice() -> None:
    """The same arguments give the same result, today and in a replay in ten years."""
    assert not [problem for path in domain_files() for problem in impure_calls(tree(path), name_of(path))]


def test_domains_are_synchronous() -> None:
    """Nothing in a domain waits."""
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [
        f"{name_of(path)}:{node.lineno}"
        for path in domain_files()
        for node in ast.walk(tree(path))
        if isinstance(node, waits)
    ]


def test_the_check_sees_clocks_and_dice() -> None:
    """Each kind of impurity is found in a file that has it."""
    impure = "datetime.now(UTC)\nnp.random.default_rng()\nPhilox()\nnp.random.rand(3)\n"
    pure = "datetime.fromtimestamp(1, UTC)\nPhilox(key=seed)\nnp.random.Generator(Philox(key=seed))\nrng.random()\n"
    assert len(list(impure_calls(ast.parse(impure), "x"))) == 4
    assert not list(impure_calls(ast.parse(pure), "x"))


def impure_calls(module: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and _is_impure(node):
            yield f"{name}:{node.lineno}: {ast.unparse(node)}"


def _is_impure(call: ast.Call) -> bool:
    *owner, method = ast.unparse(call.func).split(".")
    if owner and (owner[-1], method) in CLOCKS:
        return True
    if method in DICE and not call.args and not call.keywords:
        return True
    return owner[-2:] in (["np", "random"], ["numpy", "random"]) and method in LEGACY_DICE
