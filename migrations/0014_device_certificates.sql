-- Certificates for keys that the operating system of a Mac holds. They are of a device, named by the serial number that
-- Apple attested, and of no machine: nothing that looks for a machine's certificate finds one.

ALTER TABLE certificates ALTER COLUMN machine_id DROP NOT NULL;
ALTER TABLE certificates ADD COLUMN device_serial_number text;
ALTER TABLE certificates ADD CONSTRAINT certificates_have_one_subject
    CHECK (num_nonnulls(machine_id, device_serial_number) = 1);
CREATE INDEX certificates_by_device ON certificates (device_serial_number, issued_at DESC)
    WHERE device_serial_number IS NOT NULL;
COMMENT ON COLUMN certificates.machine_id IS 'The machine in its subject; the record may be deleted. Null where the subject is a device.';
COMMENT ON COLUMN certificates.device_serial_number IS 'The serial number in its subject, attested by Apple for the very key; null where the subject is a machine.';
