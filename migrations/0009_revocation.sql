-- Certificates by state and by expiry, and the revocation lists that relying parties fetch.

-- Each list is read in the order of expiry: all certificates, those not revoked (valid or expired, by the time that they
-- are read at), and the revoked ones. Of those that expire in one second the newer comes later, so that a certificate that
-- is issued while somebody reads a list comes behind what was there.
CREATE INDEX certificates_by_expiry ON certificates (not_after, issued_at, serial_number);
CREATE INDEX certificates_not_revoked_by_expiry ON certificates (not_after, issued_at, serial_number) WHERE revoked_at IS NULL;
CREATE INDEX certificates_revoked_by_expiry ON certificates (not_after, issued_at, serial_number) WHERE revoked_at IS NOT NULL;

CREATE TABLE revocation_lists (
    issuer_id uuid PRIMARY KEY,
    number bigint NOT NULL CHECK (number > 0),
    der bytea NOT NULL,
    this_update timestamptz NOT NULL,
    next_update timestamptz NOT NULL,
    CHECK (this_update < next_update)
);
-- Signed lists of random serial numbers: compressing them takes time and saves nothing.
ALTER TABLE revocation_lists ALTER COLUMN der SET STORAGE EXTERNAL;
COMMENT ON TABLE revocation_lists IS 'The newest certificate revocation list of each CA. One replica signs it, all serve it.';
COMMENT ON COLUMN revocation_lists.issuer_id IS 'The CA: sealed_keys.id.';
COMMENT ON COLUMN revocation_lists.number IS 'The CRL number: rises with every list of this CA.';
COMMENT ON COLUMN revocation_lists.der IS 'The list, signed by the CA.';
COMMENT ON COLUMN revocation_lists.this_update IS 'When it was signed.';
COMMENT ON COLUMN revocation_lists.next_update IS 'Until when it may be served.';

CREATE TABLE revocations_waiting (
    serial_number text PRIMARY KEY,
    issuer_id uuid NOT NULL
);
COMMENT ON TABLE revocations_waiting IS 'Revoked certificates that no list has yet. Written in the statement that revokes, so that no revocation waits for another, and removed by the transaction that stores the list.';
COMMENT ON COLUMN revocations_waiting.serial_number IS 'The certificate.';
COMMENT ON COLUMN revocations_waiting.issuer_id IS 'The CA whose list lacks it.';
