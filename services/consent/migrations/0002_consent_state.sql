-- migrate:up

-- The fold of each member's ledger (stream consent-<member_id>): what stands. A revocation is a row, not an absence.
CREATE TABLE consent_state (
    member_id text NOT NULL,
    purpose text NOT NULL,
    state smallint NOT NULL CHECK (state IN (1, 2, 3, 5)),
    -- Of the ledger when the purpose was last written about; the highest of a member is where its ledger stands.
    consent_version integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    answered_at timestamptz NOT NULL,
    -- 'infinity' for consent that does not expire.
    expires_at timestamptz NOT NULL,
    purpose_version integer NOT NULL,
    PRIMARY KEY (member_id, purpose)
);

-- migrate:down

DROP TABLE consent_state;
