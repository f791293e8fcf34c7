-- Openings: for some hours, the new key of a Mac that was wiped may take the Mac's record over without a token.

CREATE TABLE machine_openings (
    id uuid PRIMARY KEY,
    machine_id uuid NOT NULL REFERENCES machines ON DELETE CASCADE,
    hours integer NOT NULL CHECK (hours BETWEEN 1 AND 168),
    reason text,
    opened_by jsonb NOT NULL,
    opened_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL CHECK (ends_at > opened_at),
    first_key bytea CHECK (length(first_key) = 32),
    watched_until timestamptz,
    contested_at timestamptz,
    ended_at timestamptz,
    CHECK ((first_key IS NULL) = (watched_until IS NULL)),
    CHECK (contested_at IS NULL OR first_key IS NOT NULL)
);
COMMENT ON TABLE machine_openings IS 'Permissions for a machine''s record to be taken over by a new key without a token. A row that has not ended counts until its time is over, and as long as it is contested.';
COMMENT ON COLUMN machine_openings.id IS 'UUIDv7.';
COMMENT ON COLUMN machine_openings.machine_id IS 'The machine whose record is open.';
COMMENT ON COLUMN machine_openings.hours IS 'How long the record is open, and how long a second key is looked for after a first one took the record over.';
COMMENT ON COLUMN machine_openings.reason IS 'The administrator''s reason, if one was given.';
COMMENT ON COLUMN machine_openings.opened_by IS 'Who opened the record: an actor, as in the audit log.';
COMMENT ON COLUMN machine_openings.opened_at IS 'When it was opened.';
COMMENT ON COLUMN machine_openings.ends_at IS 'When it ends if no key takes the record over.';
COMMENT ON COLUMN machine_openings.first_key IS 'Thumbprint of the key that took the record over.';
COMMENT ON COLUMN machine_openings.watched_until IS 'Until when another key contests the takeover.';
COMMENT ON COLUMN machine_openings.contested_at IS 'When another key asked after the takeover. The machine gets no grants until an administrator approves one of the keys.';
COMMENT ON COLUMN machine_openings.ended_at IS 'When it ended before its time, or was found to be over.';

CREATE UNIQUE INDEX machine_openings_one ON machine_openings (machine_id) WHERE ended_at IS NULL;
CREATE INDEX machine_openings_of_machine ON machine_openings (machine_id);
