-- Key rotation: a machine's next key, which serves beside the current one until it has checked in.

ALTER TABLE machine_keys DROP CONSTRAINT machine_keys_status_check;
ALTER TABLE machine_keys ADD CONSTRAINT machine_keys_status_check
    CHECK (status IN ('pending', 'current', 'next', 'superseded', 'revoked', 'denied'));
COMMENT ON COLUMN machine_keys.status IS 'Whether it serves; next: it does beside the current one, and replaces that with its first check-in.';

-- A rotation that is begun anew replaces the one that was not finished.
CREATE UNIQUE INDEX machine_keys_one_next ON machine_keys (machine_id) WHERE status = 'next';
