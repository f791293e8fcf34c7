-- The history of policy is written by the owner of the tables, whichever role changes a row, and nothing changes it.

-- A temporary table of the name policy_versions or settings would otherwise be found first (see 0025), and a replica of an
-- earlier version would need a privilege that it does not get.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION keep_policy_version() SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
END
$$;

CREATE FUNCTION refuse_to_change_policy_versions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: versions are only added', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION refuse_to_change_policy_versions() IS 'Raises an error for every role.';
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON policy_versions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_policy_versions();
ALTER TABLE policy_versions ENABLE ALWAYS TRIGGER only_added_to;
COMMENT ON TRIGGER only_added_to ON policy_versions IS 'A version is never changed or removed.';
COMMENT ON TABLE policy_versions IS 'Every version of every permission, grant and audience. A trigger of these tables writes it.';

-- A replica of an earlier version sets no time. Its changes get the time of the change before.
UPDATE settings SET grants_changed_at = greatest(grants_changed_at, now());
