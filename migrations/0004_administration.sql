-- Administration: who may call, what was changed, and the server's own keys.

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    secret_hash bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin', 'relying-party')),
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);
COMMENT ON TABLE api_keys IS 'Callers of the admin API and of introspection. A secret is shown once and kept as a digest alone.';
COMMENT ON COLUMN api_keys.id IS 'UUIDv7.';
COMMENT ON COLUMN api_keys.secret_hash IS 'SHA-256 of the secret, which has 256 bits of entropy.';
COMMENT ON COLUMN api_keys.name IS 'Who or what uses it; the audit names it.';
COMMENT ON COLUMN api_keys.role IS 'What it may do.';
COMMENT ON COLUMN api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN api_keys.expires_at IS 'From when on it does not serve; null for never.';
COMMENT ON COLUMN api_keys.revoked_at IS 'When it was revoked; null while it serves.';

CREATE TABLE audit_entries (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    actor_kind text NOT NULL CHECK (actor_kind IN ('api-key', 'machine', 'command-line', 'system')),
    actor_id text,
    actor_name text,
    action text NOT NULL,
    resource_kind text NOT NULL,
    resource_id text NOT NULL,
    request_id text,
    reason text,
    before jsonb,
    after jsonb
);
CREATE INDEX audit_entries_by_resource ON audit_entries (resource_kind, resource_id, id);
COMMENT ON TABLE audit_entries IS 'Every change, written in the transaction that made it. Only ever inserted.';
COMMENT ON COLUMN audit_entries.id IS 'UUIDv7.';
COMMENT ON COLUMN audit_entries.at IS 'When.';
COMMENT ON COLUMN audit_entries.actor_kind IS 'What kind of actor did it.';
COMMENT ON COLUMN audit_entries.actor_id IS 'The API key''s or machine''s id.';
COMMENT ON COLUMN audit_entries.actor_name IS 'The API key''s name at that time.';
COMMENT ON COLUMN audit_entries.action IS 'What was done, such as machine.revoke.';
COMMENT ON COLUMN audit_entries.resource_kind IS 'To what kind of resource.';
COMMENT ON COLUMN audit_entries.resource_id IS 'To which.';
COMMENT ON COLUMN audit_entries.request_id IS 'By which request.';
COMMENT ON COLUMN audit_entries.reason IS 'Why, in the actor''s words.';
COMMENT ON COLUMN audit_entries.before IS 'The resource before.';
COMMENT ON COLUMN audit_entries.after IS 'The resource after.';

CREATE TABLE audit_seals (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    entry_id uuid NOT NULL UNIQUE,
    hash bytea NOT NULL CHECK (length(hash) = 32)
);
COMMENT ON TABLE audit_seals IS 'The hash chain over the audit. Apart from the entries, so that writing an entry waits for nobody and neither table is ever updated.';
COMMENT ON COLUMN audit_seals.sequence IS 'The place in the chain, from 1 without a gap.';
COMMENT ON COLUMN audit_seals.entry_id IS 'The entry at this place; no foreign key, so that a deleted entry shows as broken.';
COMMENT ON COLUMN audit_seals.hash IS 'SHA-256 over the previous hash and the entry.';

CREATE TABLE audit_waiting (
    entry_id uuid PRIMARY KEY
);
COMMENT ON TABLE audit_waiting IS 'Entries that wait to be sealed, so that sealing looks at these alone, however long the audit has grown. Written in the statement that writes the entry, removed by the one that seals it.';
COMMENT ON COLUMN audit_waiting.entry_id IS 'The entry; no foreign key, so that a deleted entry shows as broken.';

CREATE TABLE sealed_keys (
    id uuid PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('root-ca', 'issuing-ca', 'grant-signing', 'nonce')),
    sealed bytea NOT NULL,
    certificate bytea,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE sealed_keys IS 'The server''s own keys, sealed under the master key, which is not in the database.';
COMMENT ON COLUMN sealed_keys.id IS 'UUIDv7; part of what the seal is bound to, as is the purpose.';
COMMENT ON COLUMN sealed_keys.purpose IS 'What the key is for.';
COMMENT ON COLUMN sealed_keys.sealed IS 'AES-256-GCM of the private key (PKCS#8) or, for nonces, of 32 random bytes.';
COMMENT ON COLUMN sealed_keys.certificate IS 'The CA''s certificate, DER; null where the key has none.';
COMMENT ON COLUMN sealed_keys.created_at IS 'When it was made.';
