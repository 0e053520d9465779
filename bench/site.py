"""The site that is measured: a bundle of invented items with some fifty model columns, and a ranker of full size.

Its content means nothing; its size is what performance figures are stated for: 20 rotating candidates,
300 trees of 31 leaves over 40 or more columns. Everything is drawn from one seed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ITEMS_COUNT = 1000
NUMBERS_COUNT = 20
CATEGORY_VALUES = [f"c{k}" for k in range(12)]
TREES_COUNT = 300
LEAVES_COUNT = 31
PURPOSE = "profile_personalization"
PLACEMENT = "bench_slot"
MODEL = "bench"
SLATE_SIZE = 5
CANDIDATES_COUNT = 20
HOLDOUT_SHARE = 0.1


def write_bundle(folder: Path, *, holdout_share: float = HOLDOUT_SHARE) -> tuple[Path, Path]:
    """Write the site's YAML and its feed of items; gives both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {
        "site.yaml": {"name": "bench", "controller": "bench, bench@site.example", "holdout_share": holdout_share},
        "purposes.yaml": [
            {
                "id": PURPOSE,
                "description": "Show what suits the person",
                "legal_basis": "consent",
                "owner": "bench",
                "retention_days": 30,
                "version": 1,
            }
        ],
        "features.yaml": _features(),
        "placements.yaml": [
            {
                "id": PLACEMENT,
                "description": "The measured placement",
                "slate_size": SLATE_SIZE,
                "default_slate": [{"item_id": f"i{k}"} for k in range(SLATE_SIZE)],
                "purposes": [PURPOSE],
                "policy_id": "bench_policy",
            }
        ],
        "policies.yaml": [
            {
                "id": "bench_policy",
                "description": "Ranked, with one eligibility rule and some exploration",
                "eligibility": "item.attributes.n0 > -100.0",
                "ranker": {"model": MODEL},
                "epsilon": 0.1,
                "popular_by": "clicks_decayed",
            }
        ],
    }
    for name, content in parts.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "events").mkdir(exist_ok=True)
    for event_type, reward in (("exposure", 0.0), ("click", 1.0)):
        (folder / "events" / f"{event_type}.yaml").write_text(yaml.safe_dump(_event(event_type, reward)))
    feed = folder / "items.jsonl"
    feed.write_text("".join(json.dumps(item) + "\n" for item in _items()))
    return folder, feed


def _event(event_type: str, reward: float) -> dict[str, Any]:
    return {
        "type": event_type,
        "description": f"An item's {event_type}",
        "purposes": [PURPOSE],
        "owner": "bench",
        "reason": "Measured",
        "retention_days": 30,
        "item_required": event_type == "click",
        "reward": reward,
    }


def _features() -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {
        f"number_{k}": {"item_attribute": {"attribute": f"n{k}"}} for k in range(NUMBERS_COUNT)
    }
    kinds["category"] = {"item_category": {"attribute": "category", "values": CATEGORY_VALUES}}
    kinds["clicks"] = {"item_count": {"event_type": "click", "transform": "TRANSFORM_LOG1P"}}
    # Proofs compare this sum with the log.
    kinds["clicks_plain"] = {"item_count": {"event_type": "click"}}
    kinds["clicks_decayed"] = {"item_count": {"event_type": "click", "half_life_s": 86400}}
    kinds["exposures"] = {"item_count": {"event_type": "exposure", "transform": "TRANSFORM_LOG1P"}}
    kinds["click_rate"] = {"item_rate": {"numerator": "click", "denominator": "exposure", "prior_strength": 10}}
    kinds["subject_clicks"] = {"subject_count": {"event_type": "click"}}
    kinds["subject_exposures"] = {"subject_count": {"event_type": "exposure"}}
    kinds["subject_rate"] = {
        "subject_rate": {"numerator": "click", "denominator": "exposure", "prior_strength": 5, "prior_rate": 0.1}
    }
    kinds["recency"] = {"subject_recency": {"event_type": "click", "half_life_s": 86400}}
    kinds["affinity"] = {
        "category_affinity": {
            "attribute": "category",
            "numerator": "click",
            "denominator": "exposure",
            "buckets": 16,
            "prior_strength": 2,
        }
    }
    kinds["affinity_clicks"] = {"category_affinity": {"attribute": "category", "numerator": "click", "buckets": 16}}
    kinds["hour"] = {"context_value": {"key": "hour", "default_value": 12}}
    personal = ("subject", "recency", "affinity")
    return [
        {
            "name": name,
            "description": f"Measured column {name}",
            "owner": "bench",
            "reason": "Measured",
            "retention_days": 30,
            "purposes": [PURPOSE] if name.startswith(personal) else [],
            **kind,
        }
        for name, kind in kinds.items()
    ]


def _items() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [
        {
            "id": f"i{k}",
            "title": f"Item {k}",
            "categories": {"category": {"values": [CATEGORY_VALUES[k % len(CATEGORY_VALUES)]]}},
            "numbers": {f"n{j}": round(float(rng.normal()), 4) for j in range(NUMBERS_COUNT)},
            "variants": ["plain"],
        }
        for k in range(ITEMS_COUNT)
    ]
