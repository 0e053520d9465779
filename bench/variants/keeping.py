"""A decision that logs what the caller said also where it is for nobody, whom no erasure finds."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.domain.candidates import Offer, offer_of
from services.decision.domain.catalog import PlacementView
from services.decision.domain.record import DecisionRecord
from services.decision.domain.request import Ask
from services.decision.handlers import draft


def offer(call: draft.Call, ask: Ask, view: PlacementView) -> Offer:
    """See handlers.draft; the caller's candidates, whoever is asked for."""
    return offer_of(view, ask.candidate_ids) if ask.candidate_ids else call.serving.offers[ask.placement_id]


def of_nobody(record: DecisionRecord) -> DecisionRecord:
    """See domain.record; keeps all of it."""
    return record


if __name__ == "__main__":
    with patch.object(draft, "_offer", offer), patch.object(draft, "of_nobody", of_nobody):
        run("decision", wiring.Settings, wiring.build)
