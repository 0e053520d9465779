"""What a bundle declares about consent is judged by the consent service's own rules, with file, line and remedy."""

from pathlib import Path
from typing import Any

import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb

from cli.bundle import apply_bundle, load_bundle
from tests.unit.bundle.samples import RANKLENS, SHOP, Edit, problems_of
from tests.unit.bundle.test_apply import FakeServices


def test_the_examples_declare_notices() -> None:
    """Whoever copies an example begins with notices that name its purposes."""
    bundle = load_bundle(SHOP)
    assert [notice.message.version for notice in bundle.notices] == ["2025-11", "2026-10"]
    assert bundle.notices[0].message.retired_at.ToJsonString() == "2026-10-01T00:00:00Z"
    assert [place.message.id for place in bundle.jurisdictions if place.message.is_default] == ["eu"]
    personal = [one.message.id for one in bundle.purposes if one.message.personalizes]
    assert personal == ["session_personalization", "profile_personalization"]
    assert [notice.message.version for notice in load_bundle(RANKLENS).notices] == ["study"]


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "says", "remedy"),
    [
        ("notices.yaml", "measurement, model", "measuring, model", 5, "no declared purpose", "declared are"),
        ("notices.yaml", "[en, de, fr]", "[English]", 9, "no BCP 47 tag", "write for example en"),
        ("notices.yaml", "[en, de, fr]", "[en us]", 9, "no BCP 47 tag", "write for example en"),
        ("notices.yaml", '"2025-11"\n', '"2026-10"\n', 8, "declared twice", "remove one"),
        ("notices.yaml", "2026-10-01", "soon", 7, "must be a time", "2026-10-01T12:00:00Z"),
        ("notices.yaml", "retired_at: 2026-10-01", "retired: 2026-10-01", 7, "no key", "did you mean retired_at"),
        ("jurisdictions.yaml", "REGIME_OPT_IN", "OPT_IN", 4, "no Regime", "REGIME_OPT_IN"),
        ("jurisdictions.yaml", "[session_personalization]", "[sessions]", 11, "no declared purpose", "declared are"),
        ("jurisdictions.yaml", "- id: us\n", "- id: us\n  is_default: true\n", 3, "are default", "all but one"),
        ("jurisdictions.yaml", "[identity_linking]", "[site_optimization]", 9, "legitimate interest", "leave it out"),
        ("purposes.yaml", "SaleOptOut", "SaleOptOuts", 26, "no US section has a field SaleOptOuts", "mend"),
        ("purposes.yaml", "purposes: [1, 8]", "purposes: [1, 80]", 37, "numbered from 1 to 24", "mend"),
        ("purposes.yaml", "publisher: true", "publishr: true", 26, "no key", "did you mean publisher"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    shop: Path, edit: Edit, file: str, old: str, new: str, line: int, says: str, remedy: str
) -> None:
    """Each mistake, where it stands, and what to do about it."""
    edit(file, old, new)
    found = [one for one in problems_of(shop) if one.file == file]
    assert any(says in one.problem and remedy in one.remedy and one.line == line for one in found), found


@pytest.mark.parametrize(
    ("unnamed", "place", "needed"),
    [("identity_linking", "[5].id", "people must be asked"), ("site_optimization", "[0].id", "people must be told")],
)
def test_a_purpose_that_no_notice_in_use_names_is_refused(
    shop: Path, edit: Edit, unnamed: str, place: str, needed: str
) -> None:
    """A retired notice names it no more; what is done without asking must be told of, too."""
    text = (shop / "notices.yaml").read_text()
    head, _, in_use = text.rpartition("- version:")
    (shop / "notices.yaml").write_text(f"{head}- version:{in_use.replace(unnamed, 'measurement', 1)}")
    (problem,) = problems_of(shop)
    assert (problem.file, problem.path) == ("purposes.yaml", place)
    assert f"is named by no notice in use, and {needed}" in problem.problem
    assert f"id: {unnamed}" in (shop / "purposes.yaml").read_text().splitlines()[problem.line - 1]
    assert problem.remedy == "name it in a notice of notices.yaml, under a new version"


@pytest.mark.parametrize("file", ["notices.yaml", "jurisdictions.yaml"])
def test_notices_and_jurisdictions_are_optional(shop: Path, file: str) -> None:
    """A site that has declared neither so far is as sound as it was."""
    (shop / file).unlink()
    assert problems_of(shop) == []


async def test_apply_publishes_all_of_it_in_one_call() -> None:
    """Purposes, notices and jurisdictions are one policy version, so that none holds without the others."""
    sent: list[consent_pb.PublishPurposesRequest] = []

    class Services(FakeServices):
        async def PublishPurposes(self, request: Any, timeout: float) -> Any:  # noqa: N802
            sent.append(request)
            return await super().PublishPurposes(request, timeout)

    bundle = load_bundle(SHOP)
    services: Any = Services()
    await apply_bundle(bundle, services)
    assert [request.validate_only for request in sent] == [True, False]
    for request in sent:
        assert [one.version for one in request.notices] == ["2025-11", "2026-10"]
        assert [one.id for one in request.jurisdictions] == ["eu", "us-ca", "us"]
        assert request.purposes[2].signals.tcf.purposes == [1, 5, 6]
