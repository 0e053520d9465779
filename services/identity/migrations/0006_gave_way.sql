-- migrate:up

-- Members that left a person to make room for a link: they are rows of that link which it does not name. Found and
-- deleted with the other names of a member. A process of the version before takes such a row for a name when it folds.
ALTER TABLE link_members ADD COLUMN gave_way boolean NOT NULL DEFAULT false;

-- migrate:down

ALTER TABLE link_members DROP COLUMN gave_way;
