-- migrate:up

-- The erasure ledger, as it stands: the facts lie in the streams erasure-<erasure_id>. It holds pseudonyms only, and is
-- kept: it is the proof, and what a service that was restored from a backup is brought up to date with. The numbers are
-- given out under a lock, so that a reader that has passed one has seen all below it.
CREATE TABLE erasures (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    erasure_id text NOT NULL UNIQUE,
    subject_id text NOT NULL,
    member_ids text[] NOT NULL,
    requested_at timestamptz NOT NULL,
    -- NULL while it runs.
    completed_at timestamptz,
    -- Version of the stream of its facts.
    stream_version integer NOT NULL,
    -- Canonical JSON, signed; NULL while it runs.
    receipt bytea,
    signature bytea,
    key_id text,
    public_key bytea,
    CHECK ((completed_at IS NULL) = (receipt IS NULL))
);
CREATE INDEX erasures_running ON erasures (number) WHERE completed_at IS NULL;
CREATE INDEX erasures_members ON erasures USING gin (member_ids);

-- What each service has done of each erasure.
CREATE TABLE erasure_steps (
    erasure_id text NOT NULL REFERENCES erasures (erasure_id),
    service text NOT NULL,
    -- comity.common.v1.ErasureStep.
    step smallint NOT NULL,
    -- NULL while it is not taken.
    taken_at timestamptz,
    counts jsonb NOT NULL DEFAULT '[]',
    -- Reason of the last failure; empty once it is taken.
    waiting_for text NOT NULL DEFAULT '',
    PRIMARY KEY (erasure_id, service, step)
);

-- migrate:down

DROP TABLE erasure_steps;
DROP TABLE erasures;
