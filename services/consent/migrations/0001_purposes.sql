-- migrate:up

-- Every version of the site's purposes that there ever was: a grant names the one it was given under.
CREATE TABLE policy_purposes (
    policy_version text NOT NULL,
    purpose text NOT NULL,
    description text NOT NULL,
    legal_basis text NOT NULL,
    owner text NOT NULL,
    retention_days integer NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (policy_version, purpose)
);

-- The one that holds; empty before the first was published. stream_version is that of the stream "policy".
CREATE TABLE active_policy (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    policy_version text NOT NULL,
    stream_version integer NOT NULL
);
INSERT INTO active_policy (policy_version, stream_version) VALUES ('', 0);

-- migrate:down

DROP TABLE active_policy;
DROP TABLE policy_purposes;
