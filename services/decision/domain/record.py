"""A decision as it is logged: everything it was computed from, and what came out."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from services.chassis.events import LogPosition
from services.decision.domain.ladder import Candidates, Choice, Inputs
from services.decision.domain.layout import Floats, Subject
from services.decision.domain.site import ContextFact
from services.decision.domain.vocabulary import Activation, Level, Origin

# What decides now. 0: releases that told none; a default ignored exclusions, and a late stage was always at fault.
# 1: a default leaves out what is excluded, and a stage that never had its usual time blames the budget.
SEMANTICS = 1
# 0: without what a default leaves out, and without who was at fault.
DIGEST_FORMAT = 1

_FIXED = struct.Struct("<IIBBBBBBd")


@dataclass(frozen=True, slots=True)
class Versions:
    """What a decision was made with; each is echoed on the answer, the log and the span.

    Args:
        semantics: the rules of the code, see SEMANTICS.
        template: of the page that asked, as the caller told it.
    """

    model: str = ""
    feature_set: str = ""
    consent_policy: str = ""
    decision_policy: str = ""
    site: str = ""
    catalog: str = ""
    item_columns: str = ""
    semantics: int = SEMANTICS
    template: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the inputs stand on: the subject's vector and the positions it was read at.

    Args:
        subject: None where the profile was not used: nothing of it is kept.
    """

    subject: Subject | None = None
    subject_position: LogPosition | None = None
    columns_position: LogPosition | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """The consent signal that decided about a purpose, and why: words of consent's own, nothing of the string."""

    signal: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision.

    Args:
        subject_id: canonical subject; empty when identity could not say.
        member_id: whom the fact is recorded under; its data key seals the record.
        allowed_purposes: of those asked for, sorted.
        context: facts that a rule or a column reads; nothing else of the request's context.
        digest: of the inputs and the evidence as it was logged, see digest_of; empty before that.
        said: the consent signal that decided; empty where the ledger or the regime did.
        layer: that was used; UNSPECIFIED: nothing of the person was.
        refused_by_signal: purpose → signal, of those asked for that a signal refused.
        request_digest: of the request; of nobody's it is keyed, so that nobody can try whether a guess has it.
        twin_digest: the request's digest in the other form, plain or keyed; not kept.
        digest_format: what the digest is over, see DIGEST_FORMAT.
        final: no attempt withdraws it any more; see domain.attempts.
        default_also_answered: while this slate stands another attempt was answered the default.
    """

    decision_id: str
    placement_id: str
    subject_id: str
    member_id: str
    level: Level
    decided_at: datetime
    versions: Versions
    holdout: bool
    holdout_bucket: int
    allowed_purposes: tuple[str, ...]
    consent_version: int
    do_not_personalize: bool
    context: Mapping[str, ContextFact]
    inputs: Inputs
    evidence: Evidence
    choice: Choice
    activation: Activation
    origin: Origin
    seed_key_id: str
    budget_ms: int
    request_digest: bytes
    digest: bytes = field(default=b"")
    said: Said = Said()
    layer: Level = Level.UNSPECIFIED
    refused_by_signal: Mapping[str, str] = field(default_factory=dict)
    digest_format: int = DIGEST_FORMAT
    twin_digest: bytes = field(default=b"", repr=False)
    final: bool = False
    default_also_answered: bool = False

    @property
    def is_newer(self) -> bool:
        """Whether a release after this one made it, by rules that are not known here."""
        return self.versions.semantics > SEMANTICS or self.digest_format > DIGEST_FORMAT

    def is_of_request(self, made: "DecisionRecord") -> bool:
        """Whether this record, as it is kept, answers the request for which *made* was made just now."""
        return self.request_digest in (made.request_digest, made.twin_digest)


def digest_of(record: DecisionRecord) -> bytes:
    """SHA-256 over the inputs, the evidence and the draw.

    A tree model maps many matrices to the same scores: scoring again cannot show every flipped bit, this does.
    """
    inputs, subject, candidates = record.inputs, record.evidence.subject, record.inputs.candidates
    parts = [
        "\0".join(candidates.item_ids).encode(),
        "\0".join(candidates.variant_ids).encode(),
        candidates.exclusions.tobytes(),
        b"" if subject is None else float_bytes(subject.vector),
        b"" if subject is None else subject.states,
        float_bytes(inputs.matrix),
        float_bytes(inputs.scores),
        float_bytes(inputs.popularity),
    ]
    stages = (inputs.identity, inputs.consent, inputs.features, inputs.ranker, inputs.log)
    fixed = _FIXED.pack(len(candidates.item_ids), inputs.slate_size, *stages, inputs.late, record.choice.coin)
    if record.digest_format:
        parts += ["\0".join(inputs.default_left_out).encode(), bytes(inputs.default_left_out.values())]
        fixed += bytes([inputs.budget_too_short])
    # Lengths before contents, so that no byte can move from one part to the next.
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return hashlib.sha256(b"".join((fixed, lengths, *parts))).digest()


def of_nobody(record: DecisionRecord) -> DecisionRecord:
    """The record as it is kept where nobody was recognized: nothing of it could ever be found and erased.

    So it holds no string of the caller's. Of the candidates it keeps those that popularity was read of, which are
    the site's own (a slate of popular items is made of them), and of the default what was left out.
    """
    inputs, candidates = record.inputs, record.inputs.candidates
    kept = [] if inputs.popularity is None else candidates.eligible.tolist()
    candidates = Candidates(
        [candidates.item_ids[k] for k in kept],
        [candidates.variant_ids[k] for k in kept],
        np.zeros(len(kept), dtype=np.uint8),
    )
    return replace(
        record,
        # Without candidates there is nothing that was cut.
        inputs=replace(inputs, candidates=candidates, cut=inputs.cut if kept else None),
        versions=replace(record.versions, template=""),
        consent_version=0,
        context={},
        request_digest=record.twin_digest,
        twin_digest=record.request_digest,
    )


def float_bytes(values: Floats | None) -> bytes:
    """float32 little endian, row-major; empty for None."""
    return b"" if values is None else np.ascontiguousarray(values, dtype="<f4").tobytes()
