-- migrate:up

-- Whom each model was trained on: 16 bytes of each member's SHA-256, ascending, in a row for each first byte of it. A
-- million people take 16 megabytes, and one is found in one row a model.
CREATE TABLE model_members (
    name text NOT NULL,
    sha256 text NOT NULL,
    first_byte smallint NOT NULL,
    fingerprints bytea NOT NULL,
    PRIMARY KEY (first_byte, name, sha256),
    FOREIGN KEY (name, sha256) REFERENCES models
);
-- Digests do not compress.
ALTER TABLE model_members ALTER COLUMN fingerprints SET STORAGE EXTERNAL;

-- How many of them were erased since, and when the first was: the model is to be trained again within 30 days.
ALTER TABLE models ADD COLUMN erased_subjects_count integer NOT NULL DEFAULT 0;
ALTER TABLE models ADD COLUMN retrain_since timestamptz;

-- migrate:down

ALTER TABLE models DROP COLUMN retrain_since;
ALTER TABLE models DROP COLUMN erased_subjects_count;
DROP TABLE model_members;
