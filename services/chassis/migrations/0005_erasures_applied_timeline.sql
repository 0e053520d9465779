-- migrate:up

-- Beside the epoch: a cluster that was restored to a point in time keeps its identifier and begins a new timeline.
ALTER TABLE erasures_applied ADD COLUMN timeline integer NOT NULL DEFAULT 0;

-- migrate:down

ALTER TABLE erasures_applied DROP COLUMN timeline;
