-- migrate:up

-- A sample of states in the planner's statistics would outlive the people.
ALTER TABLE member_states ALTER COLUMN state SET STATISTICS 0;

-- migrate:down

ALTER TABLE member_states ALTER COLUMN state SET STATISTICS -1;
