-- Apple attestations: what Apple vouched for, of which machine and for which key; and that a machine's assurance rests
-- on the one that is its own.

CREATE TABLE apple_attestations (
    id uuid PRIMARY KEY,
    machine_id uuid NOT NULL,
    key_thumbprint bytea NOT NULL CHECK (length(key_thumbprint) = 32),
    serial_number text NOT NULL,
    attested_at timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    bound_at timestamptz NOT NULL,
    claims jsonb NOT NULL CHECK (jsonb_typeof(claims) = 'object'),
    chain bytea[] NOT NULL CHECK (cardinality(chain) > 0),
    UNIQUE (id, machine_id, key_thumbprint, serial_number, attested_at)
);
CREATE INDEX apple_attestations_by_machine ON apple_attestations (machine_id, id);
COMMENT ON TABLE apple_attestations IS 'Every Apple attestation that was bound to a machine. Rows are never changed, and outlive their machine: an auditor can verify each again.';
COMMENT ON COLUMN apple_attestations.id IS 'UUIDv7, so that ids order by when they were bound.';
COMMENT ON COLUMN apple_attestations.machine_id IS 'The machine; the record may be deleted.';
COMMENT ON COLUMN apple_attestations.key_thumbprint IS 'The key that it was made for: the freshness code is SHA-256 of its SubjectPublicKeyInfo.';
COMMENT ON COLUMN apple_attestations.serial_number IS 'The serial number that Apple vouches for.';
COMMENT ON COLUMN apple_attestations.attested_at IS 'When Apple signed it: the leaf''s not_before.';
COMMENT ON COLUMN apple_attestations.not_after IS 'When the leaf expires.';
COMMENT ON COLUMN apple_attestations.bound_at IS 'When it was verified and bound; the time to verify the chain at.';
COMMENT ON COLUMN apple_attestations.claims IS 'What it says, each null where that is unknown.';
COMMENT ON COLUMN apple_attestations.chain IS 'The chain as it came, DER, leaf first.';

ALTER TABLE machines ADD COLUMN apple_attestation_id uuid;
ALTER TABLE machines ADD COLUMN attested_at timestamptz;
ALTER TABLE machines ADD COLUMN ground_attestation text CHECK (ground_attestation IN ('bound', 'lapsed'));
COMMENT ON COLUMN machines.apple_attestation_id IS 'The Apple attestation on record, of the current key; null where there is none.';
COMMENT ON COLUMN machines.attested_at IS 'When Apple signed that one.';
COMMENT ON COLUMN machines.ground_attestation IS 'Whether the assurance rests on it, or it was found to be too old for that; null where there is none.';
CREATE INDEX machines_by_attestation ON machines (attested_at) WHERE ground_attestation = 'bound';

-- No machine is attested by the attestation of another one, of another key or of another serial number, whatever a
-- statement forgets.
ALTER TABLE machines ADD CONSTRAINT machines_attestation_is_their_own
    FOREIGN KEY (apple_attestation_id, id, current_key, serial_number, attested_at)
    REFERENCES apple_attestations (id, machine_id, key_thumbprint, serial_number, attested_at);
ALTER TABLE machines ADD CONSTRAINT machines_attestation_is_whole CHECK (
    num_nonnulls(apple_attestation_id, attested_at, ground_attestation) IN (0, 3)
    AND (apple_attestation_id IS NULL OR serial_number IS NOT NULL)
    AND (assurance <> 'attested' OR coalesce(ground_attestation = 'bound', false))
);

CREATE FUNCTION machine_key_replaced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.apple_attestation_id := NULL;
    NEW.attested_at := NULL;
    NEW.ground_attestation := NULL;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION machine_key_replaced IS 'Takes the attestation of the old key off the record, whoever replaces the key.';
CREATE TRIGGER machine_key_replaced BEFORE UPDATE OF current_key ON machines FOR EACH ROW
    WHEN (OLD.current_key IS DISTINCT FROM NEW.current_key) EXECUTE FUNCTION machine_key_replaced();
