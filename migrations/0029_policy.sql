-- Grants have names and can be changed, and every version of permissions, grants and audiences is kept.

ALTER TABLE grants
    ADD COLUMN name text,
    ADD COLUMN description text NOT NULL DEFAULT '',
    ADD COLUMN changed_at timestamptz;
UPDATE grants SET name = id::text, changed_at = created_at;
ALTER TABLE grants
    ALTER COLUMN name SET NOT NULL,
    ALTER COLUMN changed_at SET NOT NULL,
    ADD CONSTRAINT grants_name_key UNIQUE (name);
COMMENT ON COLUMN grants.name IS 'Unique. The text of the id if the administrator gave none.';
COMMENT ON COLUMN grants.description IS 'What it is for, for people.';
COMMENT ON COLUMN grants.changed_at IS 'When it was created or last changed.';

-- A replica of an earlier version, which still runs during an upgrade, inserts grants without these columns.
CREATE FUNCTION complete_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.name := coalesce(NEW.name, NEW.id::text);
    NEW.changed_at := coalesce(NEW.changed_at, NEW.created_at);
    RETURN NEW;
END
$$;
CREATE TRIGGER complete_grant BEFORE INSERT ON grants FOR EACH ROW EXECUTE FUNCTION complete_grant();

ALTER TABLE settings ADD COLUMN grants_changed_at timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN settings.grants_changed_at IS 'When grants_version last rose.';

CREATE TABLE policy_versions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('audience', 'grant', 'permission')),
    id uuid NOT NULL,
    version bigint NOT NULL,
    at timestamptz NOT NULL,
    content jsonb
);
CREATE INDEX policy_versions_of_id ON policy_versions (id, number);
COMMENT ON TABLE policy_versions IS 'Every version of every permission, grant and audience. The server only inserts.';
COMMENT ON COLUMN policy_versions.number IS 'The order of the versions of one row.';
COMMENT ON COLUMN policy_versions.kind IS 'The table of the row: audience, grant or permission.';
COMMENT ON COLUMN policy_versions.id IS 'The id of the row.';
COMMENT ON COLUMN policy_versions.version IS 'The settings.grants_version that this version began with. 0 for what existed before versions were kept.';
COMMENT ON COLUMN policy_versions.at IS 'When this version began.';
COMMENT ON COLUMN policy_versions.content IS 'The row in this version; null if it was deleted.';

INSERT INTO policy_versions (kind, id, version, at, content)
    SELECT 'permission', id, 0, created_at, to_jsonb(permissions) FROM permissions;
INSERT INTO policy_versions (kind, id, version, at, content)
    SELECT 'grant', id, 0, created_at, to_jsonb(grants) FROM grants;
INSERT INTO policy_versions (kind, id, version, at, content)
    SELECT 'audience', id, 0, created_at, to_jsonb(audiences) FROM audiences;

-- A trigger also sees the grants that are deleted with their permission.
CREATE FUNCTION keep_policy_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO policy_versions (kind, id, version, at, content)
    SELECT TG_ARGV[0], coalesce(NEW.id, OLD.id), grants_version, grants_changed_at, to_jsonb(NEW)
    FROM settings;
    RETURN NULL;
END
$$;
CREATE TRIGGER keep_version AFTER INSERT OR UPDATE OR DELETE ON permissions
    FOR EACH ROW EXECUTE FUNCTION keep_policy_version('permission');
CREATE TRIGGER keep_version AFTER INSERT OR UPDATE OR DELETE ON grants
    FOR EACH ROW EXECUTE FUNCTION keep_policy_version('grant');
CREATE TRIGGER keep_version AFTER INSERT OR UPDATE OR DELETE ON audiences
    FOR EACH ROW EXECUTE FUNCTION keep_policy_version('audience');
