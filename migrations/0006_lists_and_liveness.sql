-- Lists of a million machines: what they are searched by, in tables and indexes that give each page in order; and the
-- liveness that was announced last, so that a change of it is an event.

-- Trusted: the owner of the database may create it. Part of Postgres' contrib.
CREATE EXTENSION IF NOT EXISTS pg_trgm;

CREATE TABLE machine_labels (
    label text NOT NULL,
    machine_id uuid NOT NULL,
    PRIMARY KEY (label, machine_id)
);
COMMENT ON TABLE machine_labels IS 'The labels of machines, one a row, kept by triggers on machines. Gives the machines of a label in the order of their ids, which an index on machines.labels could not.';
COMMENT ON COLUMN machine_labels.label IS 'As key:value; a key holds no colon.';
COMMENT ON COLUMN machine_labels.machine_id IS 'The machine.';

CREATE TABLE machine_search (
    machine_id uuid PRIMARY KEY,
    content text NOT NULL
);
-- The list of insertions that wait is read by every search, so it stays short.
CREATE INDEX machine_search_by_part ON machine_search USING gin (content gin_trgm_ops) WITH (gin_pending_list_limit = 256);
COMMENT ON TABLE machine_search IS 'What a machine is found by, kept by triggers on machines. Apart from them, so that it is narrow, and that a change of anything else of a machine touches no index of trigrams.';
COMMENT ON COLUMN machine_search.machine_id IS 'The machine.';
COMMENT ON COLUMN machine_search.content IS 'Id, key thumbprint, serial number, host name and labels in lower case, a line each: no value holds a line break, so that no part matches across two of them.';

CREATE FUNCTION machine_search_content(id uuid, current_key bytea, serial_number text, hostname text, labels jsonb)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT lower(concat_ws(E'\n', id, translate(encode(current_key, 'base64'), '+/=', '-_'), serial_number, hostname,
                           (SELECT string_agg(label.key || ':' || label.value, E'\n') FROM jsonb_each_text(labels) AS label)))
$$;
COMMENT ON FUNCTION machine_search_content IS 'The text of machine_search.content.';

CREATE FUNCTION machines_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO machine_search (machine_id, content)
    SELECT id, machine_search_content(id, current_key, serial_number, hostname, labels) FROM added;
    INSERT INTO machine_labels (label, machine_id)
    SELECT label.key || ':' || label.value, id FROM added, jsonb_each_text(labels) AS label;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION machines_added IS 'Writes machine_search and machine_labels of new machines.';
CREATE TRIGGER machines_added AFTER INSERT ON machines
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION machines_added();

CREATE FUNCTION machine_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE machine_search
    SET content = machine_search_content(NEW.id, NEW.current_key, NEW.serial_number, NEW.hostname, NEW.labels)
    WHERE machine_id = NEW.id;
    IF NEW.labels <> OLD.labels THEN
        DELETE FROM machine_labels USING jsonb_each_text(OLD.labels) AS former
        WHERE label = former.key || ':' || former.value AND machine_id = NEW.id;
        INSERT INTO machine_labels (label, machine_id)
        SELECT label.key || ':' || label.value, NEW.id FROM jsonb_each_text(NEW.labels) AS label;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION machine_changed IS 'Keeps machine_search and machine_labels of a machine.';
CREATE TRIGGER machine_changed AFTER UPDATE OF serial_number, hostname, labels, current_key ON machines FOR EACH ROW
    WHEN ((OLD.serial_number, OLD.hostname, OLD.labels, OLD.current_key)
          IS DISTINCT FROM (NEW.serial_number, NEW.hostname, NEW.labels, NEW.current_key))
    EXECUTE FUNCTION machine_changed();

CREATE FUNCTION machine_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM machine_search WHERE machine_id = OLD.id;
    DELETE FROM machine_labels USING jsonb_each_text(OLD.labels) AS former
    WHERE label = former.key || ':' || former.value AND machine_id = OLD.id;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION machine_removed IS 'Removes machine_search and machine_labels of a machine.';
CREATE TRIGGER machine_removed AFTER DELETE ON machines FOR EACH ROW EXECUTE FUNCTION machine_removed();

INSERT INTO machine_search (machine_id, content)
SELECT id, machine_search_content(id, current_key, serial_number, hostname, labels) FROM machines;
INSERT INTO machine_labels (label, machine_id)
SELECT label.key || ':' || label.value, id FROM machines, jsonb_each_text(labels) AS label;

CREATE INDEX machines_by_status ON machines (status, id);
CREATE INDEX machines_by_assurance ON machines (assurance, id);

ALTER TABLE machine_presence ADD COLUMN noted_liveness text NOT NULL DEFAULT 'never'
    CHECK (noted_liveness IN ('never', 'live', 'late', 'unreachable'));
COMMENT ON COLUMN machine_presence.noted_liveness IS 'The liveness that was announced last, by an event. Changes when the liveness does and not with every check-in, so that it can have an index and check-ins stay HOT. What counts is last_check_in_at: this follows it within one sweep.';
UPDATE machine_presence SET noted_liveness = 'live' WHERE last_check_in_at IS NOT NULL;
CREATE INDEX machine_presence_by_liveness ON machine_presence (noted_liveness, machine_id);

-- Every status in order, so that one that is rare among millions is found as quickly as the rest.
DROP INDEX enrollments_pending;
CREATE INDEX enrollments_by_status ON enrollments (status, id);

-- Nearly every entry is of a machine, so that those are found along the primary key.
CREATE INDEX audit_entries_by_kind ON audit_entries (resource_kind, id) WHERE resource_kind <> 'machine';
CREATE INDEX audit_entries_by_actor_id ON audit_entries (actor_id, id) WHERE actor_id IS NOT NULL;
CREATE INDEX audit_entries_by_actor_name ON audit_entries (actor_name, id) WHERE actor_name IS NOT NULL;
