-- migrate:up

-- How far this database has been written into the journal outside of it: everything up to this line is here, and
-- everything here up to this position is there. A database that was restored says where it stood when it was copied;
-- epoch and timeline tell that it was (chassis.erasure_gate). Nothing here is about anybody.
CREATE TABLE journal_position (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number bigint NOT NULL,
    mac text NOT NULL,
    size_bytes bigint NOT NULL,
    epoch integer NOT NULL,
    xid xid8 NOT NULL,
    position bigint NOT NULL,
    log_epoch integer NOT NULL,
    timeline integer NOT NULL
);

-- migrate:down

DROP TABLE journal_position;
