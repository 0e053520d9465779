-- migrate:up

-- Values that the site's bundle says name nobody ("kiosk", "test"): declared by the operator and about no person. A
-- process of the version before does not know them, and goes on resolving them.
CREATE TABLE placeholders (
    value text PRIMARY KEY
);

-- migrate:down

DROP TABLE placeholders;
