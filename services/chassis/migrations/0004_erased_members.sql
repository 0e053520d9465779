-- migrate:up

-- The suppress list: members who were erased. From the moment one stands here nothing about it is stored.
CREATE TABLE erased_members (
    member_id text PRIMARY KEY,
    erasure_id text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now()
);

-- What each step of an erasure took away here: a step that is taken again answers the same counts.
CREATE TABLE erased_counts (
    erasure_id text NOT NULL,
    step text NOT NULL,
    store text NOT NULL,
    name text NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (erasure_id, step, store, name)
);

-- How far this database has applied consent's erasure ledger, and in which epoch of its log: a database that was
-- restored (the migrator raises the epoch) applies all of it again.
CREATE TABLE erasures_applied (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number bigint NOT NULL,
    epoch integer NOT NULL
);

-- What erasure and export look up. A B-tree and no hash index: a person has many events, and equal keys are kept once.
CREATE INDEX events_subject ON events (subject_id) WHERE subject_id <> '';
CREATE INDEX commands_stream ON commands (stream_id);

-- migrate:down

DROP INDEX commands_stream;
DROP INDEX events_subject;
DROP TABLE erasures_applied;
DROP TABLE erased_counts;
DROP TABLE erased_members;
