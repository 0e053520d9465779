-- migrate:up

-- A letter of a row that stays where it is holds no payload. Discarded, it is remembered: the row is read again and again,
-- and is not to be told each time.
ALTER TABLE dead_letters ADD COLUMN discarded_at timestamptz;

-- migrate:down

ALTER TABLE dead_letters DROP COLUMN discarded_at;
