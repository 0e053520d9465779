-- migrate:up

-- What a service's stream looked like when it was last compared with the log; a stream that looks like less lost something.
CREATE TABLE reconciler_state (
    service text PRIMARY KEY,
    stream_created text NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    deleted_count bigint NOT NULL,
    compared_until timestamptz NOT NULL
);

-- migrate:down

DROP TABLE reconciler_state;
