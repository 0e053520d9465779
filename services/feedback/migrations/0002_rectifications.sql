-- migrate:up

-- Export and erasure look for a member's decisions.
CREATE INDEX decision_facts_members ON decision_facts (member_id) WHERE member_id <> '';

-- Rectifications by their request: how many events each has put right so far, so that one that was interrupted goes on
-- and one that is sent again answers the same. The members are here so that erasure finds it.
CREATE TABLE rectifications (
    request_id  text        PRIMARY KEY,
    digest      bytea       NOT NULL,
    member_ids  text[]      NOT NULL,
    count       integer     NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- migrate:down

DROP TABLE rectifications;
DROP INDEX decision_facts_members;
