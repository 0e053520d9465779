"""Consent's ports over Postgres: the ledger and the purposes."""
