"""What of the eligible items is considered, as `comity apply` and `comity status` tell it."""

from comity.decision.v1.decision_service_pb2 import PlacementOffer

from cli.offered import cuts

CUT = PlacementOffer(placement_id="home_hero", eligible_count=1500, considered_count=200, cut_by="clicks")


def test_a_cut_says_how_many_of_how_many_in_which_order_and_the_setting() -> None:
    """Where everything is considered there is nothing to say."""
    whole = PlacementOffer(placement_id="footer", eligible_count=12, considered_count=12)
    (said,) = cuts([whole, CUT])
    assert said.startswith("home_hero considers 200 of 1,500 eligible items")
    assert "the first by clicks; COMITY_DECISION_OFFERED_MAX bounds them" in said


def test_items_that_are_cut_by_no_feature_are_cut_by_age() -> None:
    """Until features has told their columns."""
    by_age = PlacementOffer(placement_id="home_hero", eligible_count=3, considered_count=2)
    assert "the first by their entry into the catalog" in cuts([by_age])[0]
