-- MDMs: which devices they manage, what those were asked, and which of their answers were refused; and which machines
-- have to be attested.

ALTER TABLE api_keys DROP CONSTRAINT api_keys_role_check;
ALTER TABLE api_keys ADD CONSTRAINT api_keys_role_check
    CHECK (role IN ('viewer', 'operator', 'admin', 'relying-party', 'mdm'));

CREATE TABLE mdm_devices (
    enrollment_id text PRIMARY KEY CHECK (length(enrollment_id) BETWEEN 1 AND 256),
    serial_number text UNIQUE,
    learned_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL DEFAULT 'epoch',
    asked_at timestamptz,
    asked_command uuid,
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    last_error text,
    refused_at timestamptz,
    refused_digest bytea CHECK (length(refused_digest) = 32),
    refusal text,
    CHECK ((asked_at IS NULL) = (asked_command IS NULL)),
    CHECK (num_nonnulls(refused_at, refused_digest, refusal) IN (0, 3))
);
CREATE INDEX mdm_devices_due ON mdm_devices (due_at) WHERE serial_number IS NOT NULL;
COMMENT ON TABLE mdm_devices IS 'The devices that an MDM has told of, so that commands can be sent to them. Who a machine is never follows from here.';
COMMENT ON COLUMN mdm_devices.enrollment_id IS 'By which the MDM knows the device: of a Mac its UDID.';
COMMENT ON COLUMN mdm_devices.serial_number IS 'As Apple attested it, or as device or machine said it where nothing was attested; null while nobody has.';
COMMENT ON COLUMN mdm_devices.learned_at IS 'When the MDM told of it first.';
COMMENT ON COLUMN mdm_devices.due_at IS 'When to see next whether its machine has to be attested; a trigger on machines brings it forward.';
COMMENT ON COLUMN mdm_devices.asked_at IS 'When it was asked for an attestation last; noted before the MDM is called.';
COMMENT ON COLUMN mdm_devices.asked_command IS 'The CommandUUID that it was asked with.';
COMMENT ON COLUMN mdm_devices.failures IS 'How often in a row the MDM would not take a command for it.';
COMMENT ON COLUMN mdm_devices.last_error IS 'Why the last command was not taken, in words; null when it was.';
COMMENT ON COLUMN mdm_devices.refused_at IS 'When an answer of it was refused; null when the last one was taken.';
COMMENT ON COLUMN mdm_devices.refused_digest IS 'SHA-256 of that answer and of the reason, so that a repeated delivery changes nothing.';
COMMENT ON COLUMN mdm_devices.refusal IS 'Why it was refused, in words.';

CREATE TABLE mdm_servers (
    name text PRIMARY KEY CHECK (name IN ('nanomdm')),
    failures integer NOT NULL CHECK (failures > 0),
    paused_until timestamptz NOT NULL,
    last_error text NOT NULL
);
COMMENT ON TABLE mdm_servers IS 'MDMs that fail now: a row for each, so that no replica calls it before its pause is over.';
COMMENT ON COLUMN mdm_servers.name IS 'Which.';
COMMENT ON COLUMN mdm_servers.failures IS 'How many calls in a row have failed.';
COMMENT ON COLUMN mdm_servers.paused_until IS 'When it may be called again.';
COMMENT ON COLUMN mdm_servers.last_error IS 'Why the last call failed, in words.';

-- An MDM names a device by its UDID, which on a Mac is the hardware UUID.
CREATE INDEX machines_by_hardware_uuid ON machines (upper(hardware_uuid)) WHERE status = 'active';
-- Those without an attestation come first, then the oldest.
CREATE INDEX machines_by_due_attestation ON machines (coalesce(attested_at, 'epoch'), id)
    WHERE status = 'active' AND serial_number IS NOT NULL;

CREATE FUNCTION machine_attestation_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE mdm_devices SET due_at = 'epoch' WHERE serial_number = NEW.serial_number;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION machine_attestation_due IS 'Has the device of a machine looked at again, whoever changes what an attestation depends on.';
CREATE TRIGGER machine_attestation_due_when_added AFTER INSERT ON machines FOR EACH ROW
    WHEN (NEW.status = 'active') EXECUTE FUNCTION machine_attestation_due();
CREATE TRIGGER machine_attestation_due AFTER UPDATE OF status, assurance, serial_number, current_key ON machines FOR EACH ROW
    WHEN (NEW.status = 'active' AND (OLD.status, OLD.assurance, OLD.serial_number, OLD.current_key)
          IS DISTINCT FROM (NEW.status, NEW.assurance, NEW.serial_number, NEW.current_key))
    EXECUTE FUNCTION machine_attestation_due();
