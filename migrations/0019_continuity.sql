-- Continuity, the key store of each key, and values that a machine no longer tells.

-- Both columns have constant defaults, so Postgres adds them without rewriting the table.
ALTER TABLE machine_presence
    ADD COLUMN continuity_state text NOT NULL DEFAULT 'unsent' CHECK (continuity_state IN ('unsent', 'bound', 'open')),
    ADD COLUMN continuity_carried timestamptz;
COMMENT ON COLUMN machine_presence.continuity_state IS 'unsent: the machine has not sent a continuity value; bound: it must send one; open: the next evidence is accepted with any value or none.';
COMMENT ON COLUMN machine_presence.continuity_carried IS 'Order of the continuity value in the evidence recorded last; null if it carried none. The value issued last has the order last_nonce_at.';

ALTER TABLE machine_keys
    ADD COLUMN store text CHECK (store IN ('secure-enclave', 'software')),
    ADD COLUMN superseded_use_noted boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN machine_keys.store IS 'Where the first evidence that this key signed said that it is; null before that evidence.';
COMMENT ON COLUMN machine_keys.superseded_use_noted IS 'Whether the event machine.superseded-key-used was written for this key.';

UPDATE machine_keys SET store = enrollments.claims -> 'key' ->> 'store'
FROM enrollments
WHERE enrollments.key_thumbprint = machine_keys.thumbprint
  AND enrollments.claims -> 'key' ->> 'store' IN ('secure-enclave', 'software');
-- What a current key says now counts, even if it said something else before: no machine is quarantined by this migration.
UPDATE machine_keys SET store = machines.key_store
FROM machines
WHERE machines.current_key = machine_keys.thumbprint AND machine_keys.status = 'current';

ALTER TABLE machines ADD COLUMN withheld text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN machines.withheld IS 'Which of serial_number and hardware_uuid the machine''s last evidence left out although they are on record.';
