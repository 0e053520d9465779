"""Identity's ports over Postgres: who is who, links, data keys."""
