-- migrate:up

-- What a policy version declares beyond its purposes, as protobuf messages (comity.consent.v1). Tables of their own and
-- not columns: a replica of the release before goes on writing and reading policy_purposes as it did.
CREATE TABLE policy_terms (
    policy_version text NOT NULL,
    purpose text NOT NULL,
    personalizes boolean NOT NULL,
    -- SignalRule; NULL where the purpose declares none.
    signals bytea,
    PRIMARY KEY (policy_version, purpose)
);
CREATE TABLE policy_notices (
    policy_version text NOT NULL,
    notice_version text NOT NULL,
    notice bytea NOT NULL,
    PRIMARY KEY (policy_version, notice_version)
);
CREATE TABLE policy_jurisdictions (
    policy_version text NOT NULL,
    jurisdiction text NOT NULL,
    declared bytea NOT NULL,
    PRIMARY KEY (policy_version, jurisdiction)
);

-- Where the person was when it was last said; empty: nobody said. And the expires_at whose passing the ledger holds as
-- a fact (ConsentExpired): not a flag, so that a grant which a replica of the release before renews is new here too.
ALTER TABLE consent_state ADD COLUMN jurisdiction text NOT NULL DEFAULT '';
ALTER TABLE consent_state ADD COLUMN expiry_recorded_for timestamptz NOT NULL DEFAULT 'infinity';

-- Grants that run out, or have run out and are not recorded to have: the rest of the table is never looked at.
CREATE INDEX consent_state_expiring ON consent_state (expires_at)
    WHERE state = 1 AND expires_at < 'infinity' AND expiry_recorded_for <> expires_at;

-- migrate:down

DROP INDEX consent_state_expiring;
ALTER TABLE consent_state DROP COLUMN expiry_recorded_for;
ALTER TABLE consent_state DROP COLUMN jurisdiction;
DROP TABLE policy_jurisdictions;
DROP TABLE policy_notices;
DROP TABLE policy_terms;
