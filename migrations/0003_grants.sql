-- Permissions and grants: what machines may do at relying parties, and which machines.

CREATE TABLE settings (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    trust_domain text,
    grants_version bigint NOT NULL
);
INSERT INTO settings (grants_version) VALUES (1);
COMMENT ON TABLE settings IS 'One row of what all replicas share.';
COMMENT ON COLUMN settings.id IS 'Always true, so that there is one row.';
COMMENT ON COLUMN settings.trust_domain IS 'The trust domain that the server was founded for: its CA and every certificate name it, so it cannot change. Null until the first start.';
COMMENT ON COLUMN settings.grants_version IS 'Rises with every change to permissions or grants, in the same transaction; what was evaluated under another version is stale.';

CREATE TABLE permissions (
    id uuid PRIMARY KEY,
    audience text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (audience, name)
);
COMMENT ON TABLE permissions IS 'What a machine may do at a relying party.';
COMMENT ON COLUMN permissions.id IS 'UUIDv7.';
COMMENT ON COLUMN permissions.audience IS 'The relying party: aud of its grant tokens.';
COMMENT ON COLUMN permissions.name IS 'Its name there: a scope token (RFC 6749, section 3.3).';
COMMENT ON COLUMN permissions.description IS 'What it allows, for people.';
COMMENT ON COLUMN permissions.created_at IS 'When it was made.';

CREATE TABLE grants (
    id uuid PRIMARY KEY,
    permission_id uuid NOT NULL REFERENCES permissions (id) ON DELETE CASCADE,
    selector jsonb NOT NULL,
    conditions jsonb NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL
);
CREATE INDEX grants_by_permission ON grants (permission_id);
COMMENT ON TABLE grants IS 'A permission for the machines that a selector matches, while conditions hold.';
COMMENT ON COLUMN grants.id IS 'UUIDv7.';
COMMENT ON COLUMN grants.permission_id IS 'What is granted; deleting the permission takes its grants with it.';
COMMENT ON COLUMN grants.selector IS 'Which machines: machine_ids, labels, all; every member that is there must hold.';
COMMENT ON COLUMN grants.conditions IS 'What must hold at a check-in.';
COMMENT ON COLUMN grants.expires_at IS 'From when on it grants nothing; null for never.';
COMMENT ON COLUMN grants.created_at IS 'When it was made.';
