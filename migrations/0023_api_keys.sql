-- API keys that are told apart, limited to networks, and watched; events that concern no machine; and a chain of the audit
-- that only grows by its next number.

-- The networks are texts, because the server compares addresses.
ALTER TABLE api_keys
    ADD COLUMN prefix text,
    ADD COLUMN networks text[] CHECK (cardinality(networks) > 0),
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN last_used_address text,
    ADD COLUMN end_announced boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN api_keys.prefix IS 'The beginning of the secret, by which people recognize the key. Null for a key of an earlier version until its next use.';
COMMENT ON COLUMN api_keys.networks IS 'The networks in CIDR notation from which the key may be used; null for all.';
COMMENT ON COLUMN api_keys.last_used_at IS 'When the key was used last, at most a minute behind; null before the first use.';
COMMENT ON COLUMN api_keys.last_used_address IS 'From which address it was used then.';
COMMENT ON COLUMN api_keys.end_announced IS 'Whether the event api-key.expiring was written.';
COMMENT ON COLUMN api_keys.expires_at IS 'From when on the key is invalid; null for never, which only keys of earlier versions have.';
CREATE INDEX api_keys_by_end ON api_keys (expires_at) WHERE revoked_at IS NULL AND NOT end_announced;

ALTER TABLE events ALTER COLUMN machine_id DROP NOT NULL;
COMMENT ON COLUMN events.machine_id IS 'The machine; null for an event that concerns no machine.';

-- The server's role may insert into the chain. Without this check, one row with the greatest number would end the chain
-- for good, because no number is left after it.
CREATE FUNCTION require_next_seal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next bigint := coalesce((SELECT max(sequence) FROM audit_seals), 0) + 1;
BEGIN
    IF NEW.sequence IS DISTINCT FROM next THEN
        RAISE EXCEPTION 'the next number of the chain is %, not %', next, NEW.sequence USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION require_next_seal() IS 'Refuses a seal that does not have the next number.';
-- A trigger for each row sees the rows that the same statement has inserted before.
CREATE TRIGGER next_number BEFORE INSERT ON audit_seals FOR EACH ROW EXECUTE FUNCTION require_next_seal();
COMMENT ON TRIGGER next_number ON audit_seals IS 'The chain grows by its next number only.';
ALTER TABLE audit_seals ENABLE ALWAYS TRIGGER next_number;
