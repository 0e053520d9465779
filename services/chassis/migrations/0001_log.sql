-- migrate:up

-- Which run of transaction ids this log is in. A log restored into another cluster meets ids that start again;
-- the migrator then raises the epoch, so that order by (epoch, xid, position) stays commit order.
CREATE TABLE log_epoch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch integer NOT NULL,
    system_identifier bigint NOT NULL
);
INSERT INTO log_epoch (epoch, system_identifier) SELECT 1, system_identifier FROM pg_control_system();

-- The record. Commit order is (epoch, xid, position) of transactions below the oldest one still running.
CREATE TABLE events (
    position bigint GENERATED ALWAYS AS IDENTITY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    epoch integer NOT NULL,
    event_id uuid NOT NULL UNIQUE,
    stream_id text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    type text NOT NULL,
    subject_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    key_id text,
    nonce bytea,
    payload bytea NOT NULL,
    traceparent text NOT NULL,
    PRIMARY KEY (epoch, xid, position),
    UNIQUE (stream_id, version),
    CHECK ((key_id IS NULL) = (nonce IS NULL))
) WITH (toast_tuple_target = 8160);
-- Sealed bytes and float blobs do not compress; trying costs more than the insert.
ALTER TABLE events ALTER COLUMN payload SET STORAGE EXTERNAL;
-- For the reconciler, which reads the last days; rows lie in this order already.
CREATE INDEX events_recorded_at ON events USING brin (recorded_at);

-- Commands that were applied: a retry is answered from here.
CREATE TABLE commands (
    request_id text PRIMARY KEY,
    digest bytea NOT NULL,
    stream_id text NOT NULL,
    version integer NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- A fact is never changed. Only erasure takes facts away, and it says so first (SET LOCAL comity.erasing = 'on').
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('comity.erasing', true) = 'on' AND TG_OP = 'DELETE' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'events are never changed (%)', TG_OP USING ERRCODE = 'insufficient_privilege';
END;
$$;
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- migrate:down

DROP TABLE commands;
DROP TABLE events;
DROP FUNCTION refuse_change;
DROP TABLE log_epoch;
