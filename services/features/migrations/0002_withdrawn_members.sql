-- migrate:up

-- Members whose behavior was subtracted from the item blocks, in the transaction that subtracted it: never twice. The
-- number tells replicas that blocks changed though no position moved.
CREATE TABLE withdrawn_members (
    member_id text PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    erasure_id text NOT NULL,
    withdrawn_at timestamptz NOT NULL DEFAULT now()
);

-- migrate:down

DROP TABLE withdrawn_members;
