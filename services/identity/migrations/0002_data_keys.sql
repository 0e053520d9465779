-- migrate:up

-- One key a member, wrapped by a key that is in no database. A destroyed key leaves its row: it is never made again.
CREATE TABLE data_keys (
    member_id text PRIMARY KEY,
    key_id text NOT NULL UNIQUE,
    wrapped bytea,
    minted_at timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL))
);

-- Tells at the start of a process whether it was given the secrets that the data was made with.
CREATE TABLE secret_fingerprints (
    name text PRIMARY KEY,
    fingerprint bytea NOT NULL
);

-- migrate:down

DROP TABLE secret_fingerprints;
DROP TABLE data_keys;
