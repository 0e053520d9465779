-- migrate:up

-- The planner's statistics are samples of what columns hold, and outlive the rows: none are taken of what erasure is to
-- make gone. Nobody searches by these columns.
ALTER TABLE events ALTER COLUMN payload SET STATISTICS 0;
ALTER TABLE dead_letters ALTER COLUMN payload SET STATISTICS 0;

-- migrate:down

ALTER TABLE dead_letters ALTER COLUMN payload SET STATISTICS -1;
ALTER TABLE events ALTER COLUMN payload SET STATISTICS -1;
