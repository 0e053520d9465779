"""What can be wrong with answers that are to be recorded: purposes, notice, place and times.

Saying no is always easy: only consent must name the notice it was given under, and where.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.consent.domain.ledger import State
from services.consent.domain.notices import Notice
from services.consent.domain.policy import Policy

RECORDABLE = (State.GRANTED, State.DENIED, State.OBJECTED)
# Clocks of honest servers differ; what is this little ahead counts as now.
CLOCK_SKEW = timedelta(seconds=2)

Answers = Sequence[tuple[str, State]]
# Reason and the field that is wrong.
Problem = tuple[str, FieldProblem]


def raise_first(problems: Iterable[Problem]) -> None:
    """Returns when there are none.

    Raises:
        ServiceError: INVALID; its reason is that of the first problem, its problems are all of them.
    """
    found = list(problems)
    if found:
        reason, first = found[0]
        fields = tuple(problem for _, problem in found)
        raise ServiceError(Kind.INVALID, reason, f"{first.field}: {first.problem}", problems=fields)


def unknown_purposes(field_name: str, purposes: Sequence[str], policy: Policy) -> Iterator[Problem]:
    """A problem for each that is not declared; *field_name* holds {} for the place of one."""
    for index, purpose in enumerate(purposes):
        if purpose not in policy.purposes:
            yield "PURPOSE_UNKNOWN", _unknown(field_name.format(index), policy)


def answer_problems(answers: Answers, policy: Policy, *, do_not_personalize: bool) -> Iterator[Problem]:
    """What is wrong with the answers by themselves."""
    seen: set[str] = set()
    for index, (purpose, state) in enumerate(answers):
        field_name = f"answers[{index}]"
        if purpose not in policy.purposes:
            yield "PURPOSE_UNKNOWN", _unknown(f"{field_name}.purpose", policy)
        elif purpose in seen:
            problem = "is answered twice; give one answer a purpose"
            yield "PURPOSE_REPEATED", FieldProblem(f"{field_name}.purpose", problem)
        elif do_not_personalize and state is State.GRANTED and policy.purposes[purpose].personalizes:
            problem = "is allowed, and objected to by do_not_personalize; leave one of the two out"
            yield "ANSWERS_CONTRADICT", FieldProblem(f"{field_name}.state", problem)
        if state not in RECORDABLE:
            problem = "must be GRANTED, DENIED or OBJECTED; take consent back with Revoke, let it end with expires_at"
            yield "STATE_NOT_RECORDABLE", FieldProblem(f"{field_name}.state", problem)
        seen.add(purpose)
    if do_not_personalize and not any(one.personalizes for one in policy.purposes.values()):
        problem = "no declared purpose personalizes; mark those that do in purposes.yaml, or object to them by name"
        yield "NOTHING_PERSONALIZES", FieldProblem("do_not_personalize", problem)
    if not answers and not do_not_personalize:
        yield "ANSWERS_MISSING", FieldProblem("answers", "give at least one answer")


def notice_problems(
    answers: Answers, policy: Policy, *, version: str, language: str, collected_at: datetime
) -> Iterator[Problem]:
    """What is wrong with the notice that consent was given under; a site that declares none asks for none."""
    granted = [(index, purpose) for index, (purpose, state) in enumerate(answers) if state is State.GRANTED]
    if not granted or not policy.notices:
        return
    notice = policy.notices.get(version)
    if notice is None:
        yield _no_notice(version, policy)
        return
    if collected_at >= notice.retired_at:
        problem = "was retired when the person answered; ask again under one that is in use"
        yield "NOTICE_RETIRED", FieldProblem("notice_version", problem)
    for index, purpose in granted:
        if purpose in policy.purposes and purpose not in notice.purposes:
            problem = "is not named by the notice, so that nobody can have agreed to it there; ask under one that does"
            yield "PURPOSE_NOT_NAMED", FieldProblem(f"answers[{index}].purpose", problem)
    yield from _language_problems(notice, language)


def place_problems(answers: Answers, policy: Policy, jurisdiction: str) -> Iterator[Problem]:
    """What is wrong with where consent was given; a site that tells no places apart takes any."""
    is_consent = any(state is State.GRANTED for _, state in answers)
    if is_consent and jurisdiction and policy.jurisdictions and jurisdiction not in policy.jurisdictions:
        known = ", ".join(sorted(policy.jurisdictions))
        yield (
            "JURISDICTION_UNKNOWN",
            FieldProblem("jurisdiction", f"is no declared jurisdiction; declared are: {known}"),
        )


def time_problems(collected_at: datetime | None, expires_at: datetime, now: datetime) -> Iterator[Problem]:
    """What is wrong with the times."""
    if collected_at is not None and collected_at > now + CLOCK_SKEW:
        problem = "is in the future; give the time of the answer, or leave it out for now"
        yield "COLLECTED_IN_FUTURE", FieldProblem("collected_at", problem)
    if expires_at <= now:
        problem = "is in the past; give a time to come, or leave it out for consent that does not expire"
        yield "EXPIRES_IN_PAST", FieldProblem("expires_at", problem)


def _no_notice(version: str, policy: Policy) -> Problem:
    known = ", ".join(sorted(policy.notices))
    if not version:
        problem = f"is missing; consent names the notice that the person was shown, one of: {known}"
        return "NOTICE_REQUIRED", FieldProblem("notice_version", problem)
    return "NOTICE_UNKNOWN", FieldProblem("notice_version", f"is no declared notice; declared are: {known}")


def _language_problems(notice: Notice, language: str) -> Iterator[Problem]:
    known = ", ".join(notice.languages)
    if not language:
        problem = f"is missing; consent names the language that the notice was shown in, one of: {known}"
        yield "NOTICE_LANGUAGE_REQUIRED", FieldProblem("notice_language", problem)
    elif not notice.has_language(language):
        problem = f"is no language of the notice; it was shown in: {known}"
        yield "NOTICE_LANGUAGE_UNKNOWN", FieldProblem("notice_language", problem)


def _unknown(field_name: str, policy: Policy) -> FieldProblem:
    return FieldProblem(field_name, f"is no declared purpose; declared are: {policy.names}")
