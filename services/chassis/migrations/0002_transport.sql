-- migrate:up

-- How far the log has been published.
CREATE TABLE relay_checkpoint (
    service text PRIMARY KEY,
    epoch integer NOT NULL,
    xid xid8 NOT NULL,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Events of other services that have had their effect here. Kept for twice as long as streams keep messages.
CREATE TABLE inbox (
    source text NOT NULL,
    consumer text NOT NULL,
    event_id uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, consumer, event_id)
);
CREATE INDEX inbox_received_at ON inbox USING brin (received_at);

-- Everything of a source up to here has had its effect.
CREATE TABLE inbox_positions (
    source text NOT NULL,
    consumer text NOT NULL,
    epoch integer NOT NULL,
    xid xid8 NOT NULL,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, consumer)
);

-- What can never have its effect, with the reason. event_id and type are empty where not even that could be read.
CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL,
    consumer text NOT NULL,
    channel text NOT NULL,
    event_id uuid,
    type text NOT NULL DEFAULT '',
    subject_id text NOT NULL DEFAULT '',
    reason text NOT NULL,
    detail text NOT NULL DEFAULT '',
    payload bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_subject ON dead_letters (subject_id);

-- migrate:down

DROP TABLE dead_letters;
DROP TABLE inbox_positions;
DROP TABLE inbox;
DROP TABLE relay_checkpoint;
