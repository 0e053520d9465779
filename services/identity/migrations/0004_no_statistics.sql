-- migrate:up

-- A sample of wrapped keys in the planner's statistics would outlive the keys.
ALTER TABLE data_keys ALTER COLUMN wrapped SET STATISTICS 0;

-- migrate:down

ALTER TABLE data_keys ALTER COLUMN wrapped SET STATISTICS -1;
