-- migrate:up

-- Which streams of the log name a member, also of links that were taken back: what an erasure has to find. Rows are
-- added with the facts; a process of the version before adds none, so erase only once all are new.
CREATE TABLE link_streams (
    member_id text NOT NULL,
    link_id text NOT NULL,
    PRIMARY KEY (member_id, link_id)
);
INSERT INTO link_streams (member_id, link_id) SELECT member_id, link_id FROM link_members;

-- migrate:down

DROP TABLE link_streams;
