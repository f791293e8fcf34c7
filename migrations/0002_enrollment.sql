-- Enrollment: the tokens that let machines in, and what was decided on each key that asked.

CREATE TABLE enrollment_tokens (
    id uuid PRIMARY KEY,
    secret_hash bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    description text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    max_uses bigint NOT NULL CHECK (max_uses > 0),
    uses bigint NOT NULL DEFAULT 0 CHECK (uses >= 0 AND uses <= max_uses),
    serial_numbers text[] CHECK (cardinality(serial_numbers) > 0),
    labels jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),
    approval text NOT NULL CHECK (approval IN ('automatic', 'manual')),
    allow_reenrollment boolean NOT NULL,
    revoked_at timestamptz
);
COMMENT ON TABLE enrollment_tokens IS 'Secrets that let machines enroll. A secret is shown once and kept as a digest alone.';
COMMENT ON COLUMN enrollment_tokens.id IS 'UUIDv7.';
COMMENT ON COLUMN enrollment_tokens.secret_hash IS 'SHA-256 of the secret, which has 256 bits of entropy, so that no slower hash is needed.';
COMMENT ON COLUMN enrollment_tokens.description IS 'What it is for.';
COMMENT ON COLUMN enrollment_tokens.created_at IS 'When it was made.';
COMMENT ON COLUMN enrollment_tokens.expires_at IS 'From when on it does not serve.';
COMMENT ON COLUMN enrollment_tokens.max_uses IS 'How many keys it may let in.';
COMMENT ON COLUMN enrollment_tokens.uses IS 'How many it has let in; a repeated enrollment of one key counts once.';
COMMENT ON COLUMN enrollment_tokens.serial_numbers IS 'The only serial numbers it serves for; null for any.';
COMMENT ON COLUMN enrollment_tokens.labels IS 'Labels that its machines get.';
COMMENT ON COLUMN enrollment_tokens.approval IS 'Whether an administrator has to approve.';
COMMENT ON COLUMN enrollment_tokens.allow_reenrollment IS 'Whether an enrolled serial number may come back with a new key; only a token that is bound to this serial number can let it.';
COMMENT ON COLUMN enrollment_tokens.revoked_at IS 'When it was revoked; null while it serves.';

CREATE TABLE enrollments (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('enrollment', 're-enrollment')),
    status text NOT NULL CHECK (status IN ('pending', 'approved', 'denied')),
    machine_id uuid NOT NULL,
    key_thumbprint bytea NOT NULL UNIQUE REFERENCES machine_keys (thumbprint),
    previous_key bytea CHECK (length(previous_key) = 32),
    token_id uuid,
    claims jsonb NOT NULL,
    requested_at timestamptz NOT NULL,
    decided_at timestamptz,
    decided_by jsonb,
    reason text,
    CHECK ((status = 'pending') = (decided_at IS NULL))
);
CREATE INDEX enrollments_pending ON enrollments (id) WHERE status = 'pending';
CREATE INDEX enrollments_by_machine ON enrollments (machine_id);
COMMENT ON TABLE enrollments IS 'One row for each key that asked to be enrolled, and what was decided.';
COMMENT ON COLUMN enrollments.id IS 'UUIDv7.';
COMMENT ON COLUMN enrollments.kind IS 'Whether the machine is new or a record would get a new key.';
COMMENT ON COLUMN enrollments.status IS 'A denied key stays denied.';
COMMENT ON COLUMN enrollments.machine_id IS 'The machine it makes or would take over.';
COMMENT ON COLUMN enrollments.key_thumbprint IS 'The key that asks.';
COMMENT ON COLUMN enrollments.previous_key IS 'The key that a re-enrollment replaces.';
COMMENT ON COLUMN enrollments.token_id IS 'The token that came along.';
COMMENT ON COLUMN enrollments.claims IS 'What the machine said of itself when it asked: machine, posture, key.';
COMMENT ON COLUMN enrollments.requested_at IS 'When it asked first.';
COMMENT ON COLUMN enrollments.decided_at IS 'When it was decided.';
COMMENT ON COLUMN enrollments.decided_by IS 'The actor who decided, as in the audit; null where the token did.';
COMMENT ON COLUMN enrollments.reason IS 'Why.';
