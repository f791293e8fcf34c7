-- Takes the machines of the temporary table `simulated` on record: enrolled an hour ago, live, with a certificate.

INSERT INTO machines (id, status, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels, claimed_posture,
                      current_key, key_store, key_created_at, certificate_serial_number, verdict_reasons, enrolled_at)
SELECT id, 'active', 'asserted', serial_number, hardware_uuid, 'Mac16,1', hostname,
       jsonb_build_object('team', 'team-' || number % 20),
       current_setting('fleet.posture')::jsonb,
       key, 'software', now() - interval '1 hour', encode(substr(key, 1, 16), 'hex'), '{}', now() - interval '1 hour'
FROM simulated ORDER BY id;

-- The rows below refer to machines inserted above, so foreign keys need no check.
SET session_replication_role = replica;
INSERT INTO machine_presence (machine_id, admitted, current_key, claims_digest, verdict_digest, last_nonce_at, last_check_in_at,
                              clock_skew_seconds, noted_liveness)
-- In the future: the machines stay live during a measurement.
SELECT id, true, key, claims_digest, sha256(''), now(), now() + interval '12 hours', 0, 'live' FROM simulated ORDER BY id;
INSERT INTO machine_keys (thumbprint, machine_id, spki, status, store, created_at)
SELECT key, id, spki, 'current', 'software', now() - interval '1 hour' FROM simulated ORDER BY id;
INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at)
SELECT encode(substr(key, 1, 16), 'hex'), id, key, '00000000-0000-7000-8000-000000000001', sha256(key),
       decode(repeat(md5('certificate'), 40), 'hex') || key, now() - interval '1 hour', now() + interval '7 days',
       now() - interval '1 hour'
FROM simulated ORDER BY id;
