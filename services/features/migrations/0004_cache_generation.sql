-- migrate:up

-- What the cache was given in an earlier generation may be old: a write that it should have taken failed. States of the
-- present one alone are read from it.
CREATE TABLE cache_generation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL
);
INSERT INTO cache_generation (generation) VALUES (0);

-- migrate:down

DROP TABLE cache_generation;
