-- migrate:up

-- Since when the item is as it is (seconds since 1970): what comes late changes nothing newer. NULL: of a release before.
ALTER TABLE items ADD COLUMN since_s double precision;

-- What the item's categories were, and since when: behavior counts for those of its own time.
CREATE TABLE item_versions (
    item_id text NOT NULL,
    since_s double precision NOT NULL,
    item bytea NOT NULL,
    PRIMARY KEY (item_id, since_s)
);
INSERT INTO item_versions (item_id, since_s, item) SELECT id, '-infinity', item FROM items;

-- Behavior on items that the catalog does not have yet: it is counted, and not yet for their categories. `layout` is the
-- one of the state that it was counted in. A row that is folded stays until the cache has its member's new state.
CREATE TABLE pending_items (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item_id text NOT NULL,
    member_id text NOT NULL,
    type text NOT NULL,
    occurred_s double precision NOT NULL,
    layout text NOT NULL,
    folded boolean NOT NULL DEFAULT false,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pending_items_item ON pending_items (item_id);
CREATE INDEX pending_items_member ON pending_items (member_id);
CREATE INDEX pending_items_folded ON pending_items (number) WHERE folded;
-- A sample of behavior in the planner's statistics would outlive the people.
ALTER TABLE pending_items ALTER COLUMN member_id SET STATISTICS 0;
ALTER TABLE pending_items ALTER COLUMN item_id SET STATISTICS 0;

-- migrate:down

DROP TABLE pending_items;
DROP TABLE item_versions;
ALTER TABLE items DROP COLUMN since_s;
