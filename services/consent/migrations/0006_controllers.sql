-- migrate:up

-- Who answers for people's data, as each policy version names it. A table of its own and not a column: a replica of the
-- release before goes on writing the other tables as it did.
CREATE TABLE policy_controllers (
    policy_version text PRIMARY KEY,
    controller     text NOT NULL
);

-- migrate:down

DROP TABLE policy_controllers;
