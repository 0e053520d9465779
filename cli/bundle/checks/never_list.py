"""What no site uses about people unless somebody answers for it: data, with the law that each entry stands on.

It begins with the special categories of the GDPR and goes on with what other law or plain sense calls sensitive. The
words are the commonest English ones that data is named by. A site adds its own language and rules in never.yaml.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of data that is never used.

    Args:
        name: what never.yaml calls it to add proxies.
        what: for the sentence "… tells of …".
        source: where it is said to be sensitive.
        synonyms: words (or words side by side, with `_`) that name it.
    """

    name: str
    what: str
    source: str
    synonyms: tuple[str, ...]


_ART_9 = "GDPR Art. 9(1)"
_CPRA = "Cal. Civ. Code § 1798.140(ae)"

BUILT_IN: tuple[Category, ...] = (
    Category(
        "health",
        "a person's health",
        _ART_9,
        (
            "medical",
            "medication",
            "medicine",
            "prescription",
            "disease",
            "illness",
            "diagnosis",
            "diagnose",
            "diagnosed",
            "symptom",
            "patient",
            "therapy",
            "disability",
            "disabled_person",
            "pregnant",
            "pregnancy",
            "allergy",
            "addiction",
            "hiv",
            "blood_type",
            "body_mass_index",
            "bmi",
            "cancer",
            "diabetes",
            "vaccination",
            "fertility",
            "menstrual",
            "abortion",
        ),
    ),
    Category(
        "religion",
        "a person's religious or philosophical beliefs",
        _ART_9,
        (
            "religious",
            "faith",
            "belief",
            "creed",
            "church",
            "mosque",
            "synagogue",
            "denomination",
            "worship",
            "christian",
            "muslim",
            "jewish",
            "hindu",
            "buddhist",
            "atheist",
        ),
    ),
    Category(
        "ethnicity",
        "a person's racial or ethnic origin",
        _ART_9,
        ("ethnic", "ethnic_group", "race", "racial", "skin_color", "skin_colour", "caste", "tribe", "national_origin"),
    ),
    Category(
        "political_opinion",
        "a person's political opinions",
        _ART_9,
        (
            "politics",
            "political",
            "political_party",
            "party_membership",
            "voter",
            "voting_intention",
            "election_choice",
        ),
    ),
    Category("trade_union", "trade union membership", _ART_9, ("labor_union", "labour_union", "union_member")),
    Category(
        "sexual_orientation",
        "a person's sex life or sexual orientation",
        _ART_9,
        (
            "sexuality",
            "sexual",
            "sex_life",
            "gay",
            "lesbian",
            "homosexual",
            "bisexual",
            "lgbt",
            "lgbtq",
            "transgender",
            "queer",
            "gender_identity",
        ),
    ),
    Category(
        "biometric",
        "data that identifies a body",
        _ART_9,
        ("biometrics", "fingerprint", "face_id", "face_print", "facial_recognition", "iris_scan", "voice_print"),
    ),
    Category("genetic", "genetic data", _ART_9, ("gene", "genome", "dna", "ancestry")),
    Category(
        "criminal_record",
        "criminal convictions or offenses",
        "GDPR Art. 10",
        ("criminal", "conviction", "convicted", "felony", "arrest", "offender", "prison"),
    ),
    Category(
        "child",
        "children",
        "GDPR Art. 8 and recital 38; 16 CFR 312 (COPPA)",
        (
            "children",
            "childhood",
            "is_minor",
            "underage",
            "under_age",
            "under_13",
            "under_14",
            "under_16",
            "under_18",
            "date_of_birth",
            "birth_date",
            "birthday",
            "dob",
        ),
    ),
    Category(
        "precise_location",
        "where a person is, to a few hundred meters",
        _CPRA,
        (
            "precise_geolocation",
            "geolocation",
            "geo_location",
            "geohash",
            "geo_coordinate",
            "gps",
            "latitude",
            "longitude",
            "lat_lon",
            "lat_lng",
            "lat",
            "lng",
            "home_address",
            "street_address",
        ),
    ),
    Category(
        "government_id",
        "a number that a state gave the person",
        f"GDPR Art. 87; {_CPRA}",
        (
            "national_id",
            "passport",
            "social_security",
            "ssn",
            "tax_id",
            "driver_license",
            "driving_licence",
            "identity_card",
            "id_card",
            "national_insurance",
            "residence_permit",
        ),
    ),
    Category(
        "immigration_status",
        "a person's citizenship or immigration status",
        _CPRA,
        ("citizenship", "immigrant", "refugee", "asylum_seeker"),
    ),
    Category(
        "payment_card",
        "means of payment",
        f"PCI DSS 3; {_CPRA}",
        ("credit_card", "debit_card", "card_number", "cvv", "cvc", "iban", "bank_account", "account_number"),
    ),
    Category(
        "password",
        "what opens an account",
        _CPRA,
        ("passwd", "passcode", "passphrase", "pin_code", "secret_question", "access_token", "api_key", "private_key"),
    ),
    Category(
        "contact_detail",
        "who the person is; that belongs into an identity, which is kept as a keyed hash",
        "GDPR Art. 5(1)(c)",
        ("email_address", "phone_number", "telephone_number", "full_name", "ip_address"),
    ),
)
