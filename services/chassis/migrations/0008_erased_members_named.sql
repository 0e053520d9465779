-- migrate:up

-- An entry that is no member's id hides others: '' is whom every fact about nobody is recorded under, so with it on the
-- list they are all refused. Earlier releases let such entries in; they were never anybody's erasure.
DELETE FROM erased_members WHERE member_id !~ '^[a-z2-7]{26}$';
ALTER TABLE erased_members ADD CONSTRAINT erased_members_named CHECK (member_id ~ '^[a-z2-7]{26}$');

-- migrate:down

ALTER TABLE erased_members DROP CONSTRAINT erased_members_named;
