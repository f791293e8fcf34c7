-- The server's role may create temporary tables, and Postgres looks for an unqualified name among these first. A temporary
-- table `audit_seals` with one great number would have let a seal with the greatest number pass.
CREATE OR REPLACE FUNCTION require_next_seal() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next bigint;
BEGIN
    EXECUTE format('SELECT coalesce(max(sequence), 0) + 1 FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO next;
    IF NEW.sequence IS DISTINCT FROM next THEN
        RAISE EXCEPTION 'the next number of the chain is %, not %', next, NEW.sequence USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
