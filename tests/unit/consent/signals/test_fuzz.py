"""The proof of G13, in small."""

from bench.prove.consent_strings import PROTECTIONS, prove_strings


def test_invalid_strings_grant_nothing() -> None:
    """Mutations of valid strings are read as they stand or refused, and each protection is one that matters."""
    proof = prove_strings(None, 3_000, seed=20260301)
    assert proof.holds
    assert proof.failures == 0
    assert set(proof.teeth) == set(PROTECTIONS)
    assert proof.facts["mutated"] > 0.9
    assert proof.facts["granting"] > 0
