-- migrate:up

-- Ed25519 by the site's model key over the model's name and SHA-256. What was registered before signatures were asked for
-- has none and is known by this: a row of then is registered_unsigned, one that is inserted from now on is not, whoever
-- inserts it. A replica of the release before goes on registering; what it registers is served by such replicas alone
-- until it is registered again with a signature.
ALTER TABLE models ADD COLUMN signature bytea;
ALTER TABLE models ADD COLUMN registered_unsigned boolean NOT NULL DEFAULT true;
ALTER TABLE models ALTER COLUMN registered_unsigned SET DEFAULT false;
-- float32 scores of the golden rows as the trainer computed them; NULL: not known.
ALTER TABLE models ADD COLUMN golden bytea;

-- What the trial of a file found, by the version of the checker: a start does not try again what was tried before.
CREATE TABLE model_verdicts (
    sha256 text NOT NULL,
    columns_count integer NOT NULL,
    checker text NOT NULL,
    -- Empty: nothing is wrong with it.
    problem text NOT NULL,
    tried_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, columns_count, checker)
);

-- Models that turned out slow or wrong while they decided; none of them decides until somebody activates it again.
CREATE TABLE stopped_models (
    name text NOT NULL,
    sha256 text NOT NULL,
    why text NOT NULL,
    stopped_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, sha256),
    FOREIGN KEY (name, sha256) REFERENCES models
);

-- migrate:down

DROP TABLE stopped_models;
DROP TABLE model_verdicts;
ALTER TABLE models DROP COLUMN golden;
ALTER TABLE models DROP COLUMN registered_unsigned;
ALTER TABLE models DROP COLUMN signature;
