-- migrate:up

-- Declared types of behavior, the newest declaration of each, and the number of the publication that made it:
-- whoever holds an older copy asks for what is newer than his.
CREATE TABLE event_schemas (
    type        text    PRIMARY KEY,
    schema      bytea   NOT NULL,
    publication integer NOT NULL
);

-- The decision log as it came in: sealed. What lies in the payload is opened only where it is needed.
-- arrival_* is the order of coming in, read behind the barrier of open transactions as the log itself is.
CREATE TABLE decision_facts (
    decision_id   text        PRIMARY KEY,
    version       integer     NOT NULL,
    event_id      uuid        NOT NULL,
    member_id     text        NOT NULL,
    decided_at    timestamptz NOT NULL,
    key_id        text,
    nonce         bytea,
    payload       bytea       NOT NULL,
    epoch         integer     NOT NULL,
    xid           xid8        NOT NULL,
    position      bigint      NOT NULL,
    arrival_epoch integer     NOT NULL,
    arrival_xid   xid8        NOT NULL DEFAULT pg_current_xact_id(),
    arrival       bigint      GENERATED ALWAYS AS IDENTITY
);
-- Ciphertext does not shrink: trying to compress it costs more than everything else about the row. A payload of a
-- few kilobytes stays in its row, which spares the second table and its index.
ALTER TABLE decision_facts ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE decision_facts SET (toast_tuple_target = 8160);

CREATE INDEX decision_facts_arrivals ON decision_facts (arrival_epoch, arrival_xid, arrival);
CREATE INDEX decision_facts_times ON decision_facts (decided_at, decision_id);

-- Behavior whose decision has not come in. The behavior itself stays where it is, sealed in the log.
CREATE TABLE pending_outcomes (
    behavior_id uuid        PRIMARY KEY,
    decision_id text        NOT NULL,
    since       timestamptz NOT NULL
);

CREATE INDEX pending_outcomes_decisions ON pending_outcomes (decision_id);
CREATE INDEX pending_outcomes_ages ON pending_outcomes (since);

-- How far each reader of the joiner is.
CREATE TABLE join_positions (
    reader   text    PRIMARY KEY,
    epoch    integer NOT NULL,
    xid      xid8    NOT NULL,
    position bigint  NOT NULL
);

-- migrate:down

DROP TABLE join_positions;
DROP TABLE pending_outcomes;
DROP TABLE decision_facts;
DROP TABLE event_schemas;
