"""What a bundle must hold beyond its form.

references     what one file says about another
accountability every use of a person's data has purposes, an owner, a reason, an end, and a notice that says so
consenting     purposes, notices, jurisdictions and signal rules agree; consent can be given to all that asks for it
never          nothing on the never-list is used, nor what stands in for it
sizes          no more than the services take in one call
"""

from collections.abc import Callable, Iterable

from cli.bundle.bundle import Bundle
from cli.bundle.checks.accountability import unaccounted
from cli.bundle.checks.consenting import unconsentable
from cli.bundle.checks.never import forbidden_names
from cli.bundle.checks.references import contradictions
from cli.bundle.checks.sizes import too_much
from cli.bundle.problem import Problem

__all__ = ["cross_problems"]


def cross_problems(bundle: Bundle) -> list[Problem]:
    """Everything that is wrong between the parts of the bundle, or with what it does with people's data."""
    checks: tuple[Callable[[Bundle], Iterable[Problem]], ...] = (
        contradictions,
        unaccounted,
        unconsentable,
        forbidden_names,
        too_much,
    )
    return [problem for check in checks for problem in check(bundle)]
