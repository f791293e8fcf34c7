-- Admission: requests that expire, the inventory, and what stands behind each machine's serial number.

ALTER TABLE enrollments DROP CONSTRAINT enrollments_status_check;
ALTER TABLE enrollments ADD CONSTRAINT enrollments_status_check
    CHECK (status IN ('pending', 'approved', 'denied', 'expired'));
-- A key whose request expired is forgotten and may ask anew, so that its row of machine_keys goes, and the next request
-- names it again.
ALTER TABLE enrollments DROP CONSTRAINT enrollments_key_thumbprint_fkey;
ALTER TABLE enrollments DROP CONSTRAINT enrollments_key_thumbprint_key;
CREATE UNIQUE INDEX enrollments_one_per_key ON enrollments (key_thumbprint) WHERE status <> 'expired';
CREATE INDEX enrollments_expired_by_key ON enrollments (key_thumbprint, id) WHERE status = 'expired';
-- The default is for replicas of an older version, which know no end, and for what waits already: it gets the whole time.
ALTER TABLE enrollments ADD COLUMN expires_at timestamptz NOT NULL DEFAULT now() + interval '7 days';
CREATE INDEX enrollments_by_end ON enrollments (expires_at) WHERE status = 'pending';
CREATE INDEX enrollments_without_token ON enrollments (id) WHERE status = 'pending' AND token_id IS NULL;
COMMENT ON COLUMN enrollments.expires_at IS 'Until when it can be decided, if it waits.';
COMMENT ON COLUMN enrollments.status IS 'A denied key stays denied; one whose request expired may ask anew.';
COMMENT ON COLUMN enrollments.token_id IS 'The token that came along; null where none did.';
COMMENT ON TABLE enrollments IS 'What each key that asked to be enrolled was answered: one row that counts, and one for each request that expired.';

CREATE TABLE inventory (
    serial_number text PRIMARY KEY,
    labels jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),
    owner text,
    added_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
COMMENT ON TABLE inventory IS 'The machines that the organization says it has, whether they are enrolled or not.';
COMMENT ON COLUMN inventory.serial_number IS 'Compared exactly with what a machine claims.';
COMMENT ON COLUMN inventory.labels IS 'Labels that a machine gets with the match: when it is enrolled, not later.';
COMMENT ON COLUMN inventory.owner IS 'Whose machine it is, for people.';
COMMENT ON COLUMN inventory.added_at IS 'When this serial number came in.';
COMMENT ON COLUMN inventory.updated_at IS 'When its labels or owner changed last.';

ALTER TABLE machines ADD COLUMN ground_token_id uuid;
ALTER TABLE machines ADD COLUMN ground_inventory text CHECK (ground_inventory IN ('matched', 'removed'));
ALTER TABLE machines ADD COLUMN ground_enrollment_id uuid;
COMMENT ON COLUMN machines.ground_token_id IS 'The enrollment token that named the serial number when the current key came with it; null where none did.';
COMMENT ON COLUMN machines.ground_inventory IS 'Whether the inventory named the serial number when the current key was let in, and whether it has gone from there since; null where it never did.';
COMMENT ON COLUMN machines.ground_enrollment_id IS 'The enrollment of the current key that an administrator approved; null where none had to.';
COMMENT ON COLUMN machines.assurance IS 'What stands behind the serial number: follows from the grounds, and is kept for searches and grants.';

UPDATE machines
SET ground_enrollment_id = CASE WHEN enrollment.decided_by IS NOT NULL THEN enrollment.id END,
    ground_token_id = CASE WHEN machines.serial_number = ANY (token.serial_numbers) THEN token.id END
FROM enrollments AS enrollment
     LEFT JOIN enrollment_tokens AS token ON token.id = enrollment.token_id
WHERE enrollment.key_thumbprint = machines.current_key AND enrollment.machine_id = machines.id
  AND enrollment.status IN ('pending', 'approved') AND machines.assurance = 'verified';
