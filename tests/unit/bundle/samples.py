"""What tests of bundles share."""

from collections.abc import Callable
from pathlib import Path

from cli.bundle import Problem, check_bundle

SHOP = Path(__file__).parents[3] / "examples" / "shop"
RANKLENS = SHOP.parent / "ranklens"

Edit = Callable[[str, str, str], None]


def problems_of(folder: Path) -> list[Problem]:
    """Everything that `comity check` finds."""
    return check_bundle(folder)[1]
