-- ACME (RFC 8555) with device-attest-01: accounts, their orders, and the nonces that were used.

CREATE TABLE acme_accounts (
    id uuid PRIMARY KEY,
    key_thumbprint bytea NOT NULL UNIQUE CHECK (length(key_thumbprint) = 32),
    spki bytea NOT NULL,
    status text NOT NULL CHECK (status IN ('valid', 'deactivated')),
    token_id uuid,
    device_serial_number text,
    has_ordered boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL
);
-- Anybody makes an account. Those that came to nothing are found here, the oldest first, and give way to new ones.
CREATE INDEX acme_accounts_idle ON acme_accounts (id) WHERE token_id IS NULL AND NOT has_ordered;
COMMENT ON TABLE acme_accounts IS 'The accounts of ACME clients: a key, and what vouches for it.';
COMMENT ON COLUMN acme_accounts.id IS 'UUIDv7; in the account''s URL.';
COMMENT ON COLUMN acme_accounts.key_thumbprint IS 'RFC 7638, SHA-256, of the account''s key.';
COMMENT ON COLUMN acme_accounts.spki IS 'SubjectPublicKeyInfo of the account''s key, DER.';
COMMENT ON COLUMN acme_accounts.status IS 'Whether it may be used.';
COMMENT ON COLUMN acme_accounts.token_id IS 'The enrollment token that it was bound to (external account binding); null where it is bound to none.';
COMMENT ON COLUMN acme_accounts.device_serial_number IS 'The one device that the token vouches for, the first one that was ordered for; null before.';
COMMENT ON COLUMN acme_accounts.has_ordered IS 'Whether an order of it was ever let in.';
COMMENT ON COLUMN acme_accounts.created_at IS 'When it was made.';

CREATE TABLE acme_orders (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES acme_accounts (id) ON DELETE CASCADE,
    serial_number text NOT NULL,
    token text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'ready', 'valid', 'invalid')),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    refusal jsonb CHECK (jsonb_typeof(refusal) = 'object'),
    deactivated boolean NOT NULL DEFAULT false,
    validated_at timestamptz,
    attested_key bytea,
    attestation bytea[],
    certificate_serial_number text,
    CHECK (status NOT IN ('ready', 'valid') OR num_nonnulls(validated_at, attested_key, attestation) = 3),
    CHECK ((status = 'valid') = (certificate_serial_number IS NOT NULL))
);
CREATE INDEX acme_orders_by_account ON acme_orders (account_id, id);
CREATE UNIQUE INDEX acme_orders_by_certificate ON acme_orders (certificate_serial_number);
CREATE INDEX acme_orders_by_end ON acme_orders (expires_at, id);
COMMENT ON TABLE acme_orders IS 'Orders, each with its one authorization and that one''s challenge, which share its id.';
COMMENT ON COLUMN acme_orders.id IS 'UUIDv7; in the URLs of order, authorization, challenge and certificate.';
COMMENT ON COLUMN acme_orders.account_id IS 'The account that ordered.';
COMMENT ON COLUMN acme_orders.serial_number IS 'The permanent identifier: the serial number that the client says the device has.';
COMMENT ON COLUMN acme_orders.token IS 'The challenge''s token; SHA-256 of it is the freshness code of the attestation.';
COMMENT ON COLUMN acme_orders.status IS 'Where it stands; one that is pending or ready and past its end is invalid.';
COMMENT ON COLUMN acme_orders.created_at IS 'When it was made.';
COMMENT ON COLUMN acme_orders.expires_at IS 'Until when it can be fulfilled.';
COMMENT ON COLUMN acme_orders.refusal IS 'Why the attestation was refused: type and detail of the ACME problem.';
COMMENT ON COLUMN acme_orders.deactivated IS 'Whether the client gave the authorization up.';
COMMENT ON COLUMN acme_orders.validated_at IS 'When the attestation was verified; the time to verify the chain at.';
COMMENT ON COLUMN acme_orders.attested_key IS 'SubjectPublicKeyInfo of the key that Apple attested, DER: the only key that can be certified.';
COMMENT ON COLUMN acme_orders.attestation IS 'The chain as it came, DER, leaf first: kept for as long as the certificate.';
COMMENT ON COLUMN acme_orders.certificate_serial_number IS 'The certificate that came of it.';

CREATE TABLE acme_nonces (
    nonce text PRIMARY KEY,
    forget_at timestamptz NOT NULL
);
CREATE INDEX acme_nonces_by_end ON acme_nonces (forget_at);
COMMENT ON TABLE acme_nonces IS 'Nonces that were used, for as long as any replica would take them for fresh.';
COMMENT ON COLUMN acme_nonces.nonce IS 'The nonce as it was sent.';
COMMENT ON COLUMN acme_nonces.forget_at IS 'When no replica takes it any more.';
