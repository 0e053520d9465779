"""What earlier trees wrote down is read to the same effect: decisions replay, and everybody stands where they did.

A failure here says that this tree rewrites the past. Never cut the history again: read what it holds by its own rules.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.replay.reading import (
    Kept,
    histories,
    load,
    newest_of,
    outcome_of_consent,
    outcome_of_decision,
    outcome_of_features,
    outcome_of_links,
)

# What every cut holds, whatever else it does.
RUNGS = {"RANKED", "EXPLORED", "POPULAR", "DEFAULT", "HOLDOUT", "DISABLED", "UNKNOWN"}


def named(path: Path) -> str:
    return path.parent.name


@pytest.mark.parametrize("path", histories("decisions"), ids=named)
async def test_every_decision_of_the_past_replays(path: Path) -> None:
    """By the site, the model and the rules that it was made by: the same slate, reasons and propensities."""
    history = load(path)
    inspect = Kept(history).inspect()
    outcomes = {}
    for stream in history["decisions"]:
        record = newest_of(stream)
        replayed = await inspect.replay(record.decision_id)
        assert replayed.differences == (), stream["name"]
        assert replayed.choice == record.choice, stream["name"]
        outcomes[stream["name"]] = outcome_of_decision(record)
    assert outcomes == {stream["name"]: stream["outcome"] for stream in history["decisions"]}
    assert {outcome["reason"] for outcome in outcomes.values()} >= RUNGS
    assert {"ANONYMOUS", "KNOWN"} <= {outcome["layer"] for outcome in outcomes.values()}


@pytest.mark.parametrize("path", histories("decisions"), ids=named)
async def test_every_decision_of_the_past_is_explained(path: Path) -> None:
    """With what was shown in the last step."""
    history = load(path)
    inspect = Kept(history).inspect()
    for stream in history["decisions"]:
        explanation = await inspect.explained(newest_of(stream))
        assert explanation.steps[-1].finding.startswith(", ".join(stream["outcome"]["item_ids"])), stream["name"]


@pytest.mark.parametrize("path", histories("consent"), ids=named)
def test_ledgers_of_the_past_allow_what_they_allowed(path: Path) -> None:
    """Grants, refusals, objections, expiries and imports: to each member alone and to both as one person."""
    history = load(path)
    assert outcome_of_consent(history) == history["outcome"]


@pytest.mark.parametrize("path", histories("links"), ids=named)
def test_links_of_the_past_join_whom_they_joined(path: Path) -> None:
    """The same persons, earliest members and times, also after one of the links was taken back."""
    history = load(path)
    assert outcome_of_links(history) == history["outcome"]


@pytest.mark.parametrize("path", histories("features"), ids=named)
def test_states_of_the_past_give_the_vectors_they_gave(path: Path) -> None:
    """States as they were kept, and the behavior behind them folded anew; processors differ in last bits."""
    history = load(path)
    outcome = outcome_of_features(history)
    for source in ("kept", "anew"):
        for what, expected in history["outcome"][source].items():
            np.testing.assert_allclose(outcome[source][what], expected, rtol=1e-6, err_msg=f"{source} {what}")


def test_a_history_is_kept_of_everything() -> None:
    """A cut that was left out would be missed by nobody."""
    for what in ("decisions", "consent", "links", "features"):
        assert histories(what), what
