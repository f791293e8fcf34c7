-- Which root vouches for which, and issuing CAs that were withdrawn.

CREATE TABLE cross_certificates (
    id uuid PRIMARY KEY,
    issuer_id uuid NOT NULL REFERENCES sealed_keys (id),
    root_id uuid NOT NULL REFERENCES sealed_keys (id),
    certificate bytea NOT NULL,
    not_after timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (issuer_id, root_id)
);
COMMENT ON TABLE cross_certificates IS 'Certificates by which a root vouches for the root that follows it. A row is kept until its certificate expires, also when its issuer is retired: a machine that was away follows them.';
COMMENT ON COLUMN cross_certificates.id IS 'UUIDv7.';
COMMENT ON COLUMN cross_certificates.issuer_id IS 'The root that signed it: sealed_keys.id.';
COMMENT ON COLUMN cross_certificates.root_id IS 'The root whose subject and key it has: sealed_keys.id.';
COMMENT ON COLUMN cross_certificates.certificate IS 'The certificate in DER.';
COMMENT ON COLUMN cross_certificates.not_after IS 'The end of its validity.';
COMMENT ON COLUMN cross_certificates.created_at IS 'When it was added.';

ALTER TABLE sealed_keys
    ADD COLUMN withdrawn_at timestamptz,
    ADD CHECK (withdrawn_at IS NULL OR (purpose = 'issuing-ca' AND state IN ('previous', 'retired')));
COMMENT ON COLUMN sealed_keys.withdrawn_at IS 'Of an issuing CA: when an administrator withdrew it, because its key may be stolen; null otherwise.';
