-- migrate:up
-- Feature sets as they were published, for ever: a decision of last year names one of them.
CREATE TABLE feature_sets (
    version text PRIMARY KEY,
    sequence bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    feature_set bytea NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE active_feature_set (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version text NOT NULL REFERENCES feature_sets (version)
);

-- What each member's behavior adds up to. `version` counts the writes, so that a late filler of the cache never puts
-- an old state over a new one.
CREATE TABLE member_states (
    member_id text PRIMARY KEY,
    version bigint NOT NULL,
    state bytea NOT NULL
);

-- What behavior adds up to on each item, a block for each partition of the channel. `xid` tells replicas what changed.
CREATE TABLE item_blocks (
    item_id text NOT NULL,
    partition smallint NOT NULL,
    state bytea NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (item_id, partition)
);
CREATE INDEX item_blocks_changed ON item_blocks (xid);

-- The catalog as decision announced it.
CREATE TABLE items (
    id text PRIMARY KEY,
    item bytea NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX items_changed ON items (xid);
