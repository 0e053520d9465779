-- migrate:up

-- Everything a decision was made with is kept for ever: a decision of years ago is replayed with it.

-- Sites by content hash, each with the feature set it was checked against.
CREATE TABLE sites (
    site_version text PRIMARY KEY,
    site bytea NOT NULL,
    feature_set bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Items at every version they have had: a row says what the item is from this version of the catalog on.
CREATE TABLE items (
    item_id text NOT NULL,
    catalog_version bigint NOT NULL,
    item bytea NOT NULL,
    PRIMARY KEY (item_id, catalog_version)
);
CREATE INDEX items_catalog_version ON items (catalog_version);

CREATE TABLE models (
    name text NOT NULL,
    sha256 text NOT NULL,
    feature_set_version text NOT NULL,
    columns_count integer NOT NULL,
    metrics jsonb NOT NULL,
    onnx bytea NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, sha256)
);
-- Trees compress badly, and a compressed value cannot be read in parts.
ALTER TABLE models ALTER COLUMN onnx SET STORAGE EXTERNAL;

CREATE TABLE active_models (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    activated_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (name, sha256) REFERENCES models
);

-- What decides now. One row: whoever changes site or catalog locks it, so versions are counted without holes.
-- The versions of the streams are here because the newest event of a stream is not cheap to find.
CREATE TABLE standing (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    site_version text NOT NULL,
    site_stream_version integer NOT NULL,
    catalog_version bigint NOT NULL,
    catalog_stream_version integer NOT NULL
);
INSERT INTO standing (site_version, site_stream_version, catalog_version, catalog_stream_version) VALUES ('', 0, 0, 0);

-- migrate:down

DROP TABLE standing;
DROP TABLE active_models;
DROP TABLE models;
DROP TABLE items;
DROP TABLE sites;
