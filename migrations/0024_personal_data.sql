-- Names and addresses stand beside the audit's sealed entries and can be deleted; and enrollments have an address.

-- The digest takes the place of the name. A server of an earlier version, which may still seal entries during an upgrade of
-- replicas, thus computes the same hash.
COMMENT ON COLUMN audit_entries.actor_name IS 'sha256: and, in hex, SHA-256 over salt, name and address of audit_personal_data; null if the entry has neither. In entries of earlier versions the name itself.';
DROP INDEX audit_entries_by_actor_name;
CREATE INDEX audit_entries_by_actor_name ON audit_entries (actor_name, id)
    WHERE actor_name IS NOT NULL AND actor_name NOT LIKE 'sha256:%';

CREATE TABLE audit_personal_data (
    entry_id uuid PRIMARY KEY,
    salt bytea NOT NULL CHECK (length(salt) = 32),
    actor_name text,
    address text
);
CREATE INDEX audit_personal_data_by_actor_name ON audit_personal_data (actor_name, entry_id) WHERE actor_name IS NOT NULL;
COMMENT ON TABLE audit_personal_data IS 'What audit entries say of persons. Apart from the entries, so that it can be deleted: an entry contains only its salted digest.';
COMMENT ON COLUMN audit_personal_data.entry_id IS 'The entry; no foreign key, so that a deleted entry shows as broken.';
COMMENT ON COLUMN audit_personal_data.salt IS '32 random bytes. Without them a deleted address could be found by computing the digests of all addresses.';
COMMENT ON COLUMN audit_personal_data.actor_name IS 'The name of the actor at that time.';
COMMENT ON COLUMN audit_personal_data.address IS 'The address that the actor called from.';

ALTER TABLE enrollments ADD COLUMN address text;
COMMENT ON COLUMN enrollments.address IS 'The address that the enrollment was requested from; null if it is unknown or was deleted.';
CREATE INDEX enrollments_with_address ON enrollments (id) WHERE address IS NOT NULL;
