"""What came with a request, decoded: each signal valid, malformed, or not there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from services.consent.domain.signals.errors import ConsentStringError, Problem
from services.consent.domain.signals.gpp import GppString, decode_gpp
from services.consent.domain.signals.tcf import DISCLOSED_VENDORS_FROM, TcString, decode_tc
from services.consent.domain.signals.usp import UspString, decode_usp

# Sec-GPC counts when it is exactly this; any other value is no signal. Source: W3C, "Global Privacy Control (GPC)".
GPC_SET = "1"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RawSignals:
    """Signals as a caller passes them on; empty or None: there is no such signal. Personal data: never logged.

    Args:
        gpc: the Sec-GPC header.
        tc_string: an IAB TCF string.
        gpp: an IAB GPP string.
        usp: an IAB US Privacy string.
    """

    gpc: str | None = field(default=None, repr=False)
    tc_string: str | None = field(default=None, repr=False)
    gpp: str | None = field(default=None, repr=False)
    usp: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Signals:
    """Decoded signals; None: there is none; a Problem: there is one, and it is malformed."""

    gpc: bool = False
    tc: TcString | Problem | None = None
    gpp: GppString | Problem | None = None
    usp: UspString | Problem | None = None

    @property
    def problems(self) -> dict[str, Problem]:
        """What was malformed or deviated, by the name of the signal: to be counted and told, it holds no string."""
        found: dict[str, Problem] = {}
        for name, signal in (("tc_string", self.tc), ("gpp", self.gpp), ("usp", self.usp)):
            problem = signal if isinstance(signal, Problem) else getattr(signal, "deviation", None)
            if problem is not None:
                found[name] = problem
        return found


def decode(raw: RawSignals, *, disclosed_from: datetime = DISCLOSED_VENDORS_FROM) -> Signals:
    """Every signal that came; one that is malformed spoils no other.

    Args:
        disclosed_from: see `tcf.decode_tc`.
    """
    return Signals(
        gpc=raw.gpc == GPC_SET,
        tc=_decoded(raw.tc_string, lambda text: decode_tc(text, disclosed_from=disclosed_from)),
        gpp=_decoded(raw.gpp, lambda text: decode_gpp(text, disclosed_from=disclosed_from)),
        usp=_decoded(raw.usp, decode_usp),
    )


def _decoded(text: str | None, decode_one: Callable[[str], _T]) -> _T | Problem | None:
    # Only what is empty is no signal: blanks were sent by somebody who meant something, and are malformed.
    if not text:
        return None
    try:
        return decode_one(text)
    except ConsentStringError as error:
        return error.problem
