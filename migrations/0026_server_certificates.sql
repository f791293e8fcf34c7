-- The TLS certificates that the server issues to itself. Verifiers ask for the status of these, too, and any replica must
-- answer for those of the others.
CREATE TABLE server_certificates (
    serial_number text PRIMARY KEY,
    issuer_id uuid NOT NULL,
    issued_at timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    CHECK (issued_at < not_after)
);
COMMENT ON TABLE server_certificates IS 'The TLS certificates that replicas have issued to themselves. The keys are only in their memory. Expired ones are removed.';
COMMENT ON COLUMN server_certificates.serial_number IS 'Lower-case hex, two digits a byte.';
COMMENT ON COLUMN server_certificates.issuer_id IS 'The CA that issued it: sealed_keys.id.';
COMMENT ON COLUMN server_certificates.issued_at IS 'When it was issued.';
COMMENT ON COLUMN server_certificates.not_after IS 'When it expires.';
