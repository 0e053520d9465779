"""Rules tried before they decide: evaluated on made-up items and contexts in a process of their own, with limits.

CEL cannot be interrupted: a rule that takes a minute an item would hold up everything else in the process.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from services.chassis.child import begin, in_child, limit_cpu, limit_memory, say
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.rules import (
    Rule,
    RuleError,
    compile_audience,
    compile_eligibility,
    names_of,
    require_bounded,
    texts_of,
)
from services.decision.domain.site import Context, Item, Policy
from services.decision.domain.vocabulary import Level

# CPU time of one evaluation on the largest item; ordinary rules take microseconds.
EVALUATION_S_MAX = 0.02
# CPU time of a rule on all samples, memory that the process that tries may take for it, and how long anybody waits.
RULE_S_MAX = 2
MEMORY_BYTES_MAX = 2**30
TRIAL_S_MAX = 120.0

# "eligibility" or "audience", and the source.
Declared = tuple[str, str]
_RAISES, _SLOW = "raises", "slow"
_COMPILE = {"eligibility": compile_eligibility, "audience": compile_audience}
_REFUSALS = {
    _RAISES: RuleError(1, 1, "exceeds CEL's iteration budget, or fails in another way", "make the rule smaller"),
    _SLOW: RuleError(1, 1, "takes more time or memory than a rule may", "make the rule smaller"),
}


def rules_of(policy: Policy) -> dict[str, Declared]:
    """The rules that a policy has, by field."""
    declared = {"eligibility": policy.eligibility, "audience": policy.audience}
    return {field: (field, source) for field, source in declared.items() if source}


def refusals(rules: frozenset[Declared]) -> dict[Declared, RuleError]:
    """Which of these rules, all of which compile, must not be let decide, and why.

    Raises:
        ServiceError: UNAVAILABLE (RULES_NOT_TRIED).
    """
    refused = {}
    for rule in rules:
        try:
            require_bounded(rule[1])
        except RuleError as error:
            refused[rule] = error
    found = trial(rules.difference(refused))
    return refused | {rule: _REFUSALS[how] for rule, how in found.items()}


def without_slow_rules(compiled: CompiledSite) -> CompiledSite:
    """The site, whose rules that take too much are never evaluated: one kept by an earlier release may be such a rule.

    Raises:
        ServiceError: UNAVAILABLE (RULES_NOT_TRIED).
    """
    rules = frozenset(rule for policy in compiled.site.policies for rule in rules_of(policy).values())
    slow = {rule for rule, how in trial(rules).items() if how == _SLOW}
    if not slow:
        return compiled
    return replace(compiled, plans={name: _stopped(plan, slow) for name, plan in compiled.plans.items()})


def _stopped(plan: Plan, slow: set[Declared]) -> Plan:
    stopped = {
        field: replace(getattr(plan, field), stopped=True)
        for field, rule in rules_of(plan.policy).items()
        if rule in slow
    }
    return replace(plan, **stopped) if stopped else plan


@lru_cache(maxsize=64)
def trial(rules: frozenset[Declared]) -> Mapping[Declared, str]:
    """Which of the rules raise or take too much, tried in child processes.

    Raises:
        ServiceError: UNAVAILABLE (RULES_NOT_TRIED).
    """
    found, pending = {}, sorted(rules)
    while pending:
        answers = _in_child(pending)
        found.update({rule: how for rule, how in zip(pending, answers, strict=False) if how})
        pending = pending[len(answers) :]
        if pending:
            # The child died of this one.
            found[pending.pop(0)] = _SLOW
    return found


def _in_child(rules: list[Declared]) -> Sequence[str]:
    """What a child process said of each rule, up to the one that ended it."""
    data = json.dumps(rules).encode()
    return in_child(__name__, data=data, timeout_s=TRIAL_S_MAX, reason="RULES_NOT_TRIED").lines


def _main() -> None:
    """The child: one line a rule, as soon as it is known."""
    rules = json.load(sys.stdin)
    limit_memory(MEMORY_BYTES_MAX)
    # A machine on which not even this passes says nothing about rules.
    assert not _tried(compile_eligibility("true"))
    begin()
    for kind, source in rules:
        limit_cpu(RULE_S_MAX)
        say(_tried(_COMPILE[kind](source)))


def _tried(rule: Rule) -> str:
    for item, context in _samples(rule):
        took_s = []
        for _ in range(3):
            started_s = time.thread_time()
            try:
                rule.attempt(item, context, Level.KNOWN)
            except Exception:  # the binding's own, see Rule
                return _RAISES
            took_s.append(time.thread_time() - started_s)
        if min(took_s) > EVALUATION_S_MAX:
            return _SLOW
    return ""


def _samples(rule: Rule) -> Iterator[tuple[Item, Context]]:
    """Nothing at all, and items as large as they may be with all the names and texts that the rule reads."""
    yield Item(""), {}
    names = [*sorted(names_of(rule.source)), *(f"{k:064}" for k in range(64))]
    texts = (*sorted(texts_of(rule.source)), *(f"{k:064}" for k in range(64)))
    for text, number in zip(texts, (-1e9, 0.0, 1.0, 1e9), strict=False):
        item = Item(text, dict.fromkeys(names[:32], texts[:64]), dict.fromkeys(names[:64], number))
        for fact in ("x" * 256, number, number > 0):
            yield item, dict.fromkeys(rule.context_keys, fact)


if __name__ == "__main__":
    _main()
