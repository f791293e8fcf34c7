-- Takes the machines of the temporary table `simulated` on record: enrolled an hour ago, live, with a certificate.

SET maintenance_work_mem = '512MB';
SET synchronous_commit = off;

-- Indexes are made at the end, as at a restore: by their own definitions.
CREATE TEMP TABLE dropped_indexes AS
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index
WHERE indrelid = ANY (ARRAY['machines', 'machine_presence', 'machine_search', 'machine_keys', 'certificates']::regclass[])
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid);
DO $$
DECLARE index record;
BEGIN
    FOR index IN SELECT name FROM dropped_indexes LOOP
        EXECUTE format('DROP INDEX %s', index.name);
    END LOOP;
END
$$;

INSERT INTO machines (id, status, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels, claimed_posture,
                      current_key, key_store, key_created_at, certificate_serial_number, verdict_reasons, enrolled_at)
SELECT id, 'active', 'asserted', serial_number, hardware_uuid, 'Mac16,1', hostname,
       jsonb_build_object('team', 'team-' || number % 20),
       '{"os_name": "macOS", "os_version": "26.1", "os_build": "25B78", "sip_enabled": true, "filevault_enabled": true,
         "firewall_enabled": true, "gatekeeper_enabled": true, "secure_boot": "full", "mdm_enrolled": true,
         "agent_version": "0.1.0"}',
       key, 'software', now() - interval '1 hour', encode(substr(key, 1, 16), 'hex'), '{}', now() - interval '1 hour'
FROM simulated ORDER BY id;

-- What follows refers to rows that are there: nobody has to look.
SET session_replication_role = replica;
INSERT INTO machine_presence (machine_id, admitted, current_key, claims_digest, verdict_digest, last_nonce_at, last_check_in_at,
                              clock_skew_seconds, noted_liveness)
-- A while from now: they are live for as long as somebody measures.
SELECT id, true, key, claims_digest, sha256(''), now(), now() + interval '12 hours', 0, 'live' FROM simulated ORDER BY id;
INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at)
SELECT key, id, spki, 'current', now() - interval '1 hour' FROM simulated ORDER BY id;
INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at)
SELECT encode(substr(key, 1, 16), 'hex'), id, key, '00000000-0000-7000-8000-000000000001', sha256(key),
       decode(repeat(md5('certificate'), 40), 'hex') || key, now() - interval '1 hour', now() + interval '7 days',
       now() - interval '1 hour'
FROM simulated ORDER BY id;

DO $$
DECLARE index record;
BEGIN
    FOR index IN SELECT definition FROM dropped_indexes LOOP
        EXECUTE index.definition;
    END LOOP;
END
$$;
DROP TABLE simulated, dropped_indexes;
RESET ALL;
