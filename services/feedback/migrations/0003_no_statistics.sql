-- migrate:up

-- A sample of payloads in the planner's statistics would outlive the rows.
ALTER TABLE decision_facts ALTER COLUMN payload SET STATISTICS 0;

-- migrate:down

ALTER TABLE decision_facts ALTER COLUMN payload SET STATISTICS -1;
