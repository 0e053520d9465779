-- migrate:up

-- The set as it was last declared, with the words that change no number: descriptions, owners, reasons, retention. NULL:
-- as in `feature_set`, which has the words of sets published by a release before, and else none: the version is a hash
-- of `feature_set` for every release.
ALTER TABLE feature_sets ADD COLUMN declared bytea;

-- migrate:down

ALTER TABLE feature_sets DROP COLUMN declared;
