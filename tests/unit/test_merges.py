"""A link that is taken back leaves everybody as they would be without it: members, buckets, consent and facts."""

import pytest

from bench.prove import merges

SEED = 11


def test_after_an_unmerge_everybody_is_who_they_were_without_the_merge() -> None:
    """Over identity's and consent's own domains; `make prove` does the same at full size."""
    tried = merges.run(400, SEED)
    assert tried.differing == 0, f"seed {SEED}"
    # It would mean nothing if the links had changed nothing.
    assert tried.merging > 100
    assert tried.telling > 20


@pytest.mark.parametrize("variant", merges.VARIANTS)
def test_the_proof_catches_merges_that_mix(variant: str) -> None:
    """Consent copied, facts moved, or an unlink that does not fold again: each is found out."""
    assert merges.run(200, SEED, merges.VARIANTS[variant]).differing > 0
