-- New machines come many in one statement: what a row of machines costs beside itself.

-- Postgres puts the text of this one into the statement that calls it; the labels, which need a query, are apart, and most
-- machines have none.
CREATE FUNCTION machine_search_labels(labels jsonb) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT string_agg(label.key || ':' || label.value, E'\n') FROM jsonb_each_text(labels) AS label
$$;
COMMENT ON FUNCTION machine_search_labels IS 'The labels in machine_search.content, a line each; null where there are none.';
CREATE OR REPLACE FUNCTION machine_search_content(id uuid, current_key bytea, serial_number text, hostname text, labels jsonb)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT lower(concat_ws(E'\n', id, translate(encode(current_key, 'base64'), '+/=', '-_'), serial_number, hostname,
                           CASE WHEN labels <> '{}' THEN machine_search_labels(labels) END))
$$;

-- Once for all new machines, and not for each.
CREATE FUNCTION machine_attestations_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE mdm_devices SET due_at = 'epoch' FROM added
    WHERE mdm_devices.serial_number = added.serial_number AND added.status = 'active';
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION machine_attestations_due IS 'Has the devices of new machines looked at again.';
DROP TRIGGER machine_attestation_due_when_added ON machines;
CREATE TRIGGER machine_attestations_due_when_added AFTER INSERT ON machines
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION machine_attestations_due();

-- The more insertions wait, the fewer times each trigram's place in the index is looked for: a new machine costs two thirds.
-- A search reads what waits: of four times as much, some tenths of a millisecond.
ALTER INDEX machine_search_by_part SET (gin_pending_list_limit = 1024);
