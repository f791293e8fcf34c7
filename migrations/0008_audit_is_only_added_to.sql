-- The audit is only added to: whoever is not kept from changing it by privileges is stopped here. An owner or a superuser
-- would have to drop or disable these triggers first, which is a deliberate act, and the hash chain tells what came of it.

CREATE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the audit is only added to', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION refuse_to_change_audit() IS 'Raises an error, whoever asks.';

CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();
COMMENT ON TRIGGER only_added_to ON audit_entries IS 'An entry is never changed or removed.';
COMMENT ON TRIGGER only_added_to ON audit_seals IS 'A seal is never changed or removed.';

-- Also where session_replication_role = replica switches ordinary triggers off.
ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER only_added_to;
ALTER TABLE audit_seals ENABLE ALWAYS TRIGGER only_added_to;
