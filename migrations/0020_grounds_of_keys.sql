-- Grounds belong to a key. A rotation from a key in the Secure Enclave waits for a token or an approval.

ALTER TABLE enrollments DROP CONSTRAINT enrollments_kind_check;
ALTER TABLE enrollments ADD CONSTRAINT enrollments_kind_check
    CHECK (kind IN ('enrollment', 're-enrollment', 'rotation'));
COMMENT ON COLUMN enrollments.kind IS 'enrollment: a new machine. re-enrollment: a new key for a record, which signs for itself. rotation: a new key that the machine''s current key asked for.';
COMMENT ON COLUMN enrollments.previous_key IS 'The key that a re-enrollment or a rotation replaces.';
COMMENT ON COLUMN enrollments.claims IS 'What the machine claimed when it asked: machine, posture, key. For a rotation, these are the claims of the current key, which signed.';

ALTER TABLE machine_keys ADD COLUMN ground_token_id uuid;
ALTER TABLE machine_keys ADD COLUMN ground_enrollment_id uuid;
ALTER TABLE machine_keys ADD COLUMN ground_of_key boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN machine_keys.ground_token_id IS 'Of a next key: the token bound to the serial number that was given to it. Null if it inherits the grounds of the current key.';
COMMENT ON COLUMN machine_keys.ground_enrollment_id IS 'Of a next key: its enrollment, if an administrator approved that.';
COMMENT ON COLUMN machine_keys.ground_of_key IS 'Of a next key: what machines.ground_of_key becomes when this key becomes the current one.';

ALTER TABLE machines ADD COLUMN ground_of_key boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN machines.ground_of_key IS 'Whether the current key itself was approved, or is the first key that the token admitted. Only then does an attestation count. False if a rotation handed the grounds on.';
-- A key that is not shown to have its own ground has none.
WITH first_of_token AS (
    SELECT DISTINCT ON (token_id) id FROM enrollments WHERE token_id IS NOT NULL ORDER BY token_id, id
)
UPDATE machines SET ground_of_key = true
FROM enrollments AS own
WHERE own.key_thumbprint = machines.current_key AND own.machine_id = machines.id AND own.status = 'approved'
  AND (own.id = machines.ground_enrollment_id AND own.decided_by IS NOT NULL
       OR own.token_id = machines.ground_token_id AND own.id IN (SELECT id FROM first_of_token));

CREATE OR REPLACE FUNCTION machine_key_replaced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.apple_attestation_id := NULL;
    NEW.attested_at := NULL;
    NEW.ground_attestation := NULL;
    NEW.ground_of_key := false;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION machine_key_replaced IS 'Removes what belongs to the old key alone from the record whenever the key is replaced: its attestation, and that its grounds are its own.';

DROP TRIGGER machine_attestation_due ON machines;
CREATE TRIGGER machine_attestation_due
    AFTER UPDATE OF status, assurance, serial_number, current_key, ground_of_key ON machines FOR EACH ROW
    WHEN (NEW.status = 'active' AND (OLD.status, OLD.assurance, OLD.serial_number, OLD.current_key, OLD.ground_of_key)
          IS DISTINCT FROM (NEW.status, NEW.assurance, NEW.serial_number, NEW.current_key, NEW.ground_of_key))
    EXECUTE FUNCTION machine_attestation_due();

ALTER TABLE mdm_devices ADD COLUMN is_attested boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN mdm_devices.is_attested IS 'Whether Apple attested the serial number together with the device''s UDID. A claim never replaces such a mapping.';

-- Only machines whose key an attestation counts for are due.
DROP INDEX machines_by_due_attestation;
CREATE INDEX machines_by_due_attestation ON machines (coalesce(attested_at, 'epoch'), id)
    WHERE status = 'active' AND serial_number IS NOT NULL AND ground_of_key;
