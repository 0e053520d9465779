"""What identity alone counts; every process has chassis.metrics beside it."""

from prometheus_client import Counter

LINKS = Counter("comity_links", "Links that were made or taken back, by what that did.", ("effect",))
PLACEHOLDERS = Counter(
    "comity_identity_placeholders", "Identities that were ignored because their value names nobody.", ("namespace",)
)
DATA_KEYS_MINTED = Counter("comity_data_keys_minted", "Data keys that members were asked for and had none of.")
