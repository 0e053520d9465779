"""What a site declares about consent, as it is sent and as it is kept."""

from comity.consent.v1 import consent_service_pb2 as pb

from services.consent.domain.declaring import Declaration
from services.consent.domain.ledger import NEVER
from services.consent.domain.notices import Notice
from services.consent.domain.purposes import Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.mapping import PurposeRule, TcfRule
from services.consent.wire.times import to_datetime, to_timestamp


def declaration_of(request: pb.PublishPurposesRequest) -> Declaration:
    """What is declared."""
    return Declaration(
        purposes=[_purpose(one) for one in request.purposes],
        notices=[_notice(one) for one in request.notices],
        jurisdictions=[_jurisdiction(one) for one in request.jurisdictions],
        controller=request.controller,
    )


def encode_rule(rule: PurposeRule) -> bytes:
    """SignalRule, serialized."""
    return pb.SignalRule(
        tcf=_tcf_to_pb(rule.tcf),
        canada=_tcf_to_pb(rule.canada),
        us_fields=rule.us_fields,
        usp_opt_out_sale=rule.usp_opt_out_sale,
        gpc=rule.gpc,
    ).SerializeToString()


def decode_rule(data: bytes) -> PurposeRule:
    """SignalRule from what was kept."""
    return _rule(pb.SignalRule.FromString(data))


def encode_notice(notice: Notice) -> bytes:
    """Notice, serialized."""
    return pb.Notice(
        version=notice.version,
        languages=notice.languages,
        purposes=notice.purposes,
        url=notice.url,
        retired_at=to_timestamp(notice.retired_at),
    ).SerializeToString()


def decode_notice(data: bytes) -> Notice:
    """Notice from what was kept."""
    return _notice(pb.Notice.FromString(data))


def encode_jurisdiction(place: Jurisdiction) -> bytes:
    """Jurisdiction, serialized."""
    return pb.Jurisdiction(
        id=place.id,
        regime=int(place.regime),  # type: ignore[arg-type]  # the domain's numbers are the enum's
        opt_in_purposes=place.opt_in_purposes,
        gpc_objects_to=place.gpc_objects_to,
        is_default=place.is_default,
    ).SerializeToString()


def decode_jurisdiction(data: bytes) -> Jurisdiction:
    """Jurisdiction from what was kept."""
    return _jurisdiction(pb.Jurisdiction.FromString(data))


def _purpose(message: pb.Purpose) -> Purpose:
    return Purpose(
        id=message.id,
        description=message.description,
        legal_basis=message.legal_basis,
        owner=message.owner,
        retention_days=message.retention_days,
        version=message.version,
        personalizes=message.personalizes,
        signals=_rule(message.signals) if message.HasField("signals") else None,
    )


def _rule(message: pb.SignalRule) -> PurposeRule:
    return PurposeRule(
        tcf=_tcf(message.tcf) if message.HasField("tcf") else None,
        canada=_tcf(message.canada) if message.HasField("canada") else None,
        us_fields=tuple(message.us_fields),
        usp_opt_out_sale=message.usp_opt_out_sale,
        gpc=message.gpc,
    )


def _tcf(message: pb.TcfRule) -> TcfRule:
    return TcfRule(
        purposes=tuple(message.purposes),
        special_features=tuple(message.special_features),
        weaker_basis=message.weaker_basis,
        publisher=message.publisher,
        vendor_id=message.vendor_id,
    )


def _tcf_to_pb(rule: TcfRule | None) -> pb.TcfRule | None:
    if rule is None:
        return None
    return pb.TcfRule(
        purposes=rule.purposes,
        special_features=rule.special_features,
        weaker_basis=rule.weaker_basis,
        publisher=rule.publisher,
        vendor_id=rule.vendor_id,
    )


def _notice(message: pb.Notice) -> Notice:
    return Notice(
        version=message.version,
        languages=tuple(message.languages),
        purposes=tuple(message.purposes),
        url=message.url,
        retired_at=to_datetime(message.retired_at) if message.HasField("retired_at") else NEVER,
    )


def _jurisdiction(message: pb.Jurisdiction) -> Jurisdiction:
    known = message.regime in pb.Regime.values()
    return Jurisdiction(
        id=message.id,
        # One that a newer release declared, while both run, is not opt-out here, and so counts as opt-in.
        regime=Regime(message.regime) if known else Regime.UNSPECIFIED,
        opt_in_purposes=tuple(message.opt_in_purposes),
        gpc_objects_to=tuple(message.gpc_objects_to),
        is_default=message.is_default,
    )
