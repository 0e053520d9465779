-- migrate:up

-- Statements that stand. "order" of two links on one person is the order in which they were made.
CREATE TABLE links (
    link_order bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link_id text NOT NULL UNIQUE,
    -- SHA-256 of the identities' keyed hashes: a statement is kept once, however often it is made.
    statement bytea NOT NULL UNIQUE,
    linked_at timestamptz NOT NULL
);

CREATE TABLE link_members (
    link_id text NOT NULL REFERENCES links (link_id) ON DELETE CASCADE,
    member_id text NOT NULL,
    namespace text NOT NULL,
    PRIMARY KEY (link_id, member_id)
);
CREATE INDEX link_members_member ON link_members (member_id);

-- The fold of the links: who each linked member is now. A member without a row is a person of its own.
CREATE TABLE subject_members (
    member_id text PRIMARY KEY,
    subject_id text NOT NULL,
    namespace text NOT NULL,
    -- link_order of the first link that names the member.
    born bigint NOT NULL,
    -- NULL for the member that the subject began with.
    merged_at timestamptz
);
CREATE INDEX subject_members_subject ON subject_members (subject_id);

-- migrate:down

DROP TABLE subject_members;
DROP TABLE link_members;
DROP TABLE links;
