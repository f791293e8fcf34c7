-- Machines: who they are, which keys and certificates they have, and the one row that a check-in touches.

CREATE TABLE machines (
    id uuid PRIMARY KEY,
    status text NOT NULL CHECK (status IN ('pending', 'active', 'quarantined', 'revoked')),
    status_reason text,
    assurance text NOT NULL CHECK (assurance IN ('asserted', 'verified', 'attested')),
    serial_number text,
    hardware_uuid text,
    model_identifier text,
    hostname text,
    labels jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),
    note text,
    claimed_posture jsonb NOT NULL,
    current_key bytea NOT NULL CHECK (length(current_key) = 32),
    key_store text NOT NULL CHECK (key_store IN ('secure-enclave', 'software')),
    key_accessibility text CHECK (key_accessibility IN ('after-first-unlock', 'always')),
    key_created_at timestamptz NOT NULL,
    certificate_serial_number text,
    verdict_reasons text[],
    enrolled_at timestamptz NOT NULL
);
COMMENT ON TABLE machines IS 'The record of each machine. Changes rarely: a check-in that changes nothing but times does not touch it.';
COMMENT ON COLUMN machines.id IS 'UUIDv7, for as long as the record exists; in the certificate''s subject and SPIFFE id.';
COMMENT ON COLUMN machines.status IS 'Where the machine stands; machine_presence.admitted says the same to the check-in path.';
COMMENT ON COLUMN machines.status_reason IS 'Why it stands there, in an administrator''s or the server''s words.';
COMMENT ON COLUMN machines.assurance IS 'What stands behind the serial number.';
COMMENT ON COLUMN machines.serial_number IS 'The serial number on record: claimed, until the assurance says more.';
COMMENT ON COLUMN machines.hardware_uuid IS 'The hardware UUID on record (IOPlatformUUID).';
COMMENT ON COLUMN machines.model_identifier IS 'The model as last claimed.';
COMMENT ON COLUMN machines.hostname IS 'The host name as last claimed.';
COMMENT ON COLUMN machines.labels IS 'Labels, an object of texts: what selectors and searches match.';
COMMENT ON COLUMN machines.note IS 'A note for people.';
COMMENT ON COLUMN machines.claimed_posture IS 'The posture as last claimed; never what an attestation vouches for.';
COMMENT ON COLUMN machines.current_key IS 'Thumbprint (RFC 7638, SHA-256) of the current key.';
COMMENT ON COLUMN machines.key_store IS 'Where the agent says that the current key lives.';
COMMENT ON COLUMN machines.key_accessibility IS 'When the agent says that the current key can be used.';
COMMENT ON COLUMN machines.key_created_at IS 'When the server saw the current key first.';
COMMENT ON COLUMN machines.certificate_serial_number IS 'The current certificate; null while none was issued or the last was revoked.';
COMMENT ON COLUMN machines.verdict_reasons IS 'Every condition that failed at the last check-in; empty when none did, null before the first.';
COMMENT ON COLUMN machines.enrolled_at IS 'When the record was made.';

-- Two machines that claim one serial number never both become active, whatever the race.
CREATE UNIQUE INDEX machines_one_per_serial_number ON machines (serial_number) WHERE status IN ('active', 'quarantined');
CREATE INDEX machines_by_serial_number ON machines (serial_number);

CREATE TABLE machine_presence (
    machine_id uuid PRIMARY KEY REFERENCES machines (id) ON DELETE CASCADE,
    admitted boolean NOT NULL,
    current_key bytea NOT NULL CHECK (length(current_key) = 32),
    claims_digest bytea NOT NULL CHECK (length(claims_digest) = 32),
    verdict_digest bytea CHECK (length(verdict_digest) = 32),
    last_nonce_at timestamptz NOT NULL,
    last_check_in_at timestamptz,
    clock_skew_seconds bigint,
    record_version bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE machine_presence IS 'The one row that a check-in writes. Narrow, half empty and without an index on what changes, so that updates stay HOT.';
COMMENT ON COLUMN machine_presence.machine_id IS 'The machine.';
COMMENT ON COLUMN machine_presence.admitted IS 'Whether its status is active. Revoking writes this row, so that the row lock orders a revocation and a check-in.';
COMMENT ON COLUMN machine_presence.current_key IS 'The only key whose check-ins count.';
COMMENT ON COLUMN machine_presence.claims_digest IS 'SHA-256 over everything the machine said of itself last: identity, posture, key.';
COMMENT ON COLUMN machine_presence.verdict_digest IS 'SHA-256 over machines.verdict_reasons; null before the first check-in.';
COMMENT ON COLUMN machine_presence.last_nonce_at IS 'The order of the last nonce used; the next has to be later, so that each serves once.';
COMMENT ON COLUMN machine_presence.last_check_in_at IS 'When it checked in last; null before the first.';
COMMENT ON COLUMN machine_presence.clock_skew_seconds IS 'Machine''s clock minus server''s at the last check-in.';
COMMENT ON COLUMN machine_presence.record_version IS 'Rises with every change to what grants depend on; what was evaluated under another version is stale.';

CREATE TABLE machine_keys (
    thumbprint bytea PRIMARY KEY CHECK (length(thumbprint) = 32),
    machine_id uuid NOT NULL,
    spki bytea NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'current', 'superseded', 'revoked', 'denied')),
    status_reason text,
    created_at timestamptz NOT NULL,
    retired_at timestamptz
);
CREATE INDEX machine_keys_by_machine ON machine_keys (machine_id);
COMMENT ON TABLE machine_keys IS 'Every key that ever asked. Rows outlive their machine, so that a revoked key stays revoked after its record is deleted.';
COMMENT ON COLUMN machine_keys.thumbprint IS 'RFC 7638, SHA-256.';
COMMENT ON COLUMN machine_keys.machine_id IS 'The machine it belongs to, or would take over; the record may be deleted.';
COMMENT ON COLUMN machine_keys.spki IS 'SubjectPublicKeyInfo, DER; never changes, so it may be cached by thumbprint.';
COMMENT ON COLUMN machine_keys.status IS 'Whether it serves.';
COMMENT ON COLUMN machine_keys.status_reason IS 'Why it was denied or revoked.';
COMMENT ON COLUMN machine_keys.created_at IS 'When the server saw it first.';
COMMENT ON COLUMN machine_keys.retired_at IS 'When it was superseded, revoked or denied.';

CREATE TABLE certificates (
    serial_number text PRIMARY KEY,
    machine_id uuid NOT NULL,
    key_thumbprint bytea NOT NULL CHECK (length(key_thumbprint) = 32),
    issuer_id uuid NOT NULL,
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    der bytea NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    issued_at timestamptz NOT NULL,
    revoked_at timestamptz,
    revocation_reason text,
    CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL))
);
CREATE INDEX certificates_by_machine ON certificates (machine_id, issued_at DESC);
COMMENT ON TABLE certificates IS 'Every certificate that was issued to a machine; a row before it leaves the server.';
COMMENT ON COLUMN certificates.serial_number IS 'Lower-case hex, two digits a byte.';
COMMENT ON COLUMN certificates.machine_id IS 'The machine in its subject; the record may be deleted.';
COMMENT ON COLUMN certificates.key_thumbprint IS 'The key that it certifies.';
COMMENT ON COLUMN certificates.issuer_id IS 'The issuing CA: sealed_keys.id.';
COMMENT ON COLUMN certificates.sha256 IS 'Digest of the DER: x5t#S256 in grant tokens.';
COMMENT ON COLUMN certificates.der IS 'The certificate.';
COMMENT ON COLUMN certificates.not_before IS 'When it becomes valid.';
COMMENT ON COLUMN certificates.not_after IS 'When it expires.';
COMMENT ON COLUMN certificates.issued_at IS 'When it was issued.';
COMMENT ON COLUMN certificates.revoked_at IS 'When it was revoked; null while it is not.';
COMMENT ON COLUMN certificates.revocation_reason IS 'RFC 5280 reason in snake_case.';

CREATE TABLE events (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    machine_id uuid NOT NULL,
    kind text NOT NULL,
    detail jsonb NOT NULL
);
CREATE INDEX events_by_machine ON events (machine_id, id);
COMMENT ON TABLE events IS 'What happened to a machine, in order. Stays when the record is deleted.';
COMMENT ON COLUMN events.id IS 'UUIDv7, so that ids order by time.';
COMMENT ON COLUMN events.at IS 'When it happened.';
COMMENT ON COLUMN events.machine_id IS 'The machine.';
COMMENT ON COLUMN events.kind IS 'What happened, such as machine.enrolled or posture.changed.';
COMMENT ON COLUMN events.detail IS 'The values before and after, where there are such.';
