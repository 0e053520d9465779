-- migrate:up

-- A decision that was first made under nobody and then corrected for somebody was taken in under nobody, though it is
-- sealed with that member's key: who it is the key's other rows say. Where there are none the joiner puts it aside.
UPDATE decision_facts AS broken SET member_id = sealed.member_id
FROM (SELECT DISTINCT key_id, member_id FROM decision_facts WHERE member_id <> '' AND key_id IS NOT NULL) AS sealed
WHERE broken.member_id = '' AND broken.key_id = sealed.key_id;

-- migrate:down

-- Nothing to take back: which rows were broken nobody needs to know.
SELECT 1;
