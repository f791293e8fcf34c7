-- Fills a database with the schema with a fleet of fleet.machines machines and what a year leaves of them: keys, labels,
-- presences of every liveness, certificates, enrollments, events, audit entries, enrollment tokens, API keys. Everything
-- follows from a machine's number, so that a list's answer is known beforehand; see fleet.rs for what it relies on.

CREATE TEMP TABLE fleet AS
SELECT current_setting('fleet.machines')::bigint AS machines, date_trunc('second', now()) AS now,
       decode(repeat(md5('certificate'), 34), 'hex') AS der;

-- A UUIDv7 of this time, as the server makes them.
CREATE FUNCTION pg_temp.id_at(at timestamptz, salt text) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(salt), 1, 3) || 'a'
            || substr(md5(salt), 4, 15))::uuid
$$;

CREATE TEMP TABLE numbered AS
SELECT pg_temp.id_at(enrolled_at, 'machine ' || number) AS id, number, enrolled_at,
       sha256(convert_to('key ' || number, 'UTF8')) AS key,
       'C' || lpad(upper(to_hex(number * 7919)), 10, '0') AS serial_number,
       CASE WHEN number % 1000 = 7 THEN 'pending' WHEN number % 500 = 3 THEN 'quarantined' WHEN number % 40 = 1 THEN 'revoked'
            ELSE 'active' END AS status,
       machines, now, der
FROM fleet, generate_series(1, machines) AS number,
     LATERAL (SELECT now - interval '365 days' + interval '365 days' * (number / machines::float8) AS enrolled_at) AS times;
ANALYZE numbered;

INSERT INTO apple_attestations (id, machine_id, key_thumbprint, serial_number, attested_at, not_after, bound_at, claims, chain)
SELECT pg_temp.id_at(now - interval '1 day', 'attestation ' || number), id, key, serial_number, now - interval '1 day',
       now + interval '90 days', now, jsonb_build_object('serial_number', serial_number, 'sip_enabled', true), ARRAY['\x30'::bytea]
FROM numbered WHERE number % 2000 = 11;

INSERT INTO machines (id, status, status_reason, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels,
                      claimed_posture, current_key, key_store, key_accessibility, key_created_at,
                      certificate_serial_number, verdict_reasons, enrolled_at, apple_attestation_id, attested_at,
                      ground_attestation, ground_of_key)
SELECT numbered.id, status, CASE WHEN status IN ('quarantined', 'revoked') THEN 'lost' END,
       CASE WHEN attestation.id IS NOT NULL THEN 'attested' WHEN number % 10 < 3 THEN 'asserted' ELSE 'verified' END,
       numbered.serial_number, upper(md5('hardware ' || number)::uuid::text), 'Mac' || 14 + number % 3 || ',' || 1 + number % 12,
       CASE WHEN number % 100 = 0 THEN 'büro-ÄRGER-' WHEN number % 7 = 0 THEN 'build-host-' ELSE 'mac-' END || number,
       -- A site is enrolled as one: its machines are neighbours. Half of a fleet has one label, three machines another.
       jsonb_build_object('team', 'team-' || number % 20, 'site', 'site-' || number * 12 / machines)
           || CASE WHEN number % 2 = 0 THEN '{"managed": "yes"}'::jsonb ELSE '{}' END
           || CASE WHEN number IN (machines / 4, machines / 2, machines - 1) THEN '{"canary": "yes"}'::jsonb ELSE '{}' END,
       jsonb_build_object('os_name', 'macOS', 'os_version', '26.' || number % 4, 'os_build', '25A' || number % 400,
                          'sip_enabled', number % 50 <> 0, 'filevault_enabled', number % 20 <> 0, 'firewall_enabled', true,
                          'gatekeeper_enabled', true, 'secure_boot', 'full', 'mdm_enrolled', true, 'agent_version', '0.1.0'),
       key, 'secure-enclave', 'after-first-unlock', enrolled_at,
       CASE WHEN status IN ('active', 'quarantined') THEN md5('certificate ' || number) END,
       CASE WHEN number % 30 = 0 THEN ARRAY['FileVault is off'] ELSE '{}' END, enrolled_at,
       attestation.id, attestation.attested_at, CASE WHEN attestation.id IS NOT NULL THEN 'bound' END,
       attestation.id IS NOT NULL OR number % 10 >= 3
FROM numbered LEFT JOIN apple_attestations AS attestation ON machine_id = numbered.id ORDER BY number;

-- The rows below refer to machines inserted above, so foreign keys need no check.
SET session_replication_role = replica;
INSERT INTO machine_presence (machine_id, admitted, current_key, claims_digest, verdict_digest, last_nonce_at, last_check_in_at,
                              clock_skew_seconds, noted_liveness)
SELECT id, status = 'active', key, sha256(key), sha256(sha256(key)), coalesce(last_check_in_at, enrolled_at), last_check_in_at,
       CASE WHEN last_check_in_at IS NOT NULL THEN number % 3 END,
       CASE WHEN last_check_in_at IS NULL THEN 'never' WHEN last_check_in_at < now - interval '24 hours' THEN 'unreachable'
            WHEN last_check_in_at < now - interval '10 minutes' THEN 'late' ELSE 'live' END
FROM numbered, LATERAL (
    SELECT CASE WHEN status = 'pending' OR number % 200 = 5 THEN NULL
                WHEN status = 'revoked' OR number % 50 = 8 THEN now - interval '1 day' * (2 + number % 90)
                WHEN number % 33 = 9 THEN now - interval '11 minutes' - interval '1 minute' * (number % 1000)
                -- In the future: a fleet that stays live during a measurement.
                ELSE now + interval '1 hour' + interval '1 second' * (number % 300) END AS last_check_in_at
) AS presence ORDER BY number;

-- One public key for all of them: it is read, and nothing is verified with it.
INSERT INTO machine_keys (thumbprint, machine_id, store, spki, status, created_at)
SELECT key, id, 'secure-enclave', decode('3059301306072a8648ce3d020106082a8648ce3d030107034200044d1f9b6c0f3b2175d01c83025c4a0a0a680e058fd1ab1713ee5a437c'
                       || '3d534dda28b69cb799ce8336c25ff23342634507498b8f248fcd739abe731a59bf1825de', 'hex'),
       CASE status WHEN 'pending' THEN 'pending' WHEN 'revoked' THEN 'revoked' ELSE 'current' END, enrolled_at
FROM numbered ORDER BY number;

-- The current one, valid up to a week; for every second machine the one before, too.
INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at,
                          revoked_at, revocation_reason)
SELECT md5('certificate ' || CASE which WHEN 1 THEN '' ELSE 'before ' END || number), id, key, '00000000-0000-7000-8000-000000000001',
       sha256(key), der || key, issued_at, issued_at + interval '7 days', issued_at,
       CASE WHEN status = 'revoked' THEN now - interval '1 day' END,
       CASE WHEN status = 'revoked' THEN 'privilege_withdrawn' END
FROM numbered, generate_series(1, 1 + (number % 2)::int) AS which,
     LATERAL (SELECT now - interval '1 second' * (number * 37 % 400000) - interval '7 days' * (which - 1) AS issued_at) AS times
WHERE status <> 'pending' ORDER BY number;

INSERT INTO enrollments (id, kind, status, machine_id, key_thumbprint, token_id, claims, requested_at, decided_at)
SELECT pg_temp.id_at(enrolled_at, 'enrollment ' || number), 'enrollment',
       CASE status WHEN 'pending' THEN 'pending' ELSE 'approved' END, id, key,
       pg_temp.id_at(now - interval '365 days', 'token ' || number % 1000),
       jsonb_build_object('machine', jsonb_build_object('serial_number', serial_number, 'hostname', 'mac-' || number),
                          'posture', '{}'::jsonb, 'key', '{"store": "secure-enclave", "accessibility": "after-first-unlock"}'::jsonb),
       enrolled_at, CASE WHEN status <> 'pending' THEN enrolled_at END
FROM numbered ORDER BY number;

INSERT INTO events (id, at, machine_id, kind, detail, sequence)
SELECT pg_temp.id_at(at, 'event ' || which || ' ' || number), at, id,
       (ARRAY['machine.enrolled', 'liveness.changed', 'posture.changed'])[which],
       '{"posture.os_version": {"before": "26.0", "after": "26.1"}}', 3 * (number - 1) + which
FROM generate_series(1, 3) AS which, numbered,
     LATERAL (SELECT enrolled_at + (now - enrolled_at) * ((which - 1) / 3.0) AS at) AS times;
-- One machine to which much has happened.
INSERT INTO events (id, at, machine_id, kind, detail, sequence)
SELECT pg_temp.id_at(at, 'busy ' || which), at, id, 'posture.changed', '{"posture.sip_enabled": {"before": true, "after": false}}',
       3 * machines + which
FROM numbered, generate_series(1, least(100000, machines / 2)) AS which,
     LATERAL (SELECT now - interval '1 minute' * which AS at) AS times
WHERE number = 2;
-- All of them are announced: otherwise a server would begin with that.
UPDATE event_sequence SET last = (SELECT max(sequence) FROM events);

INSERT INTO api_keys (id, secret_hash, name, role, created_at)
SELECT pg_temp.id_at(now - interval '365 days', 'key ' || number), sha256(convert_to('api key ' || number, 'UTF8')),
       'operator-' || number, 'operator', now - interval '365 days'
FROM fleet, generate_series(1, 100) AS number;

INSERT INTO enrollment_tokens (id, secret_hash, description, created_at, expires_at, max_uses, approval, allow_reenrollment)
SELECT pg_temp.id_at(now - interval '365 days', 'token ' || number), sha256(convert_to('token ' || number, 'UTF8')),
       'Batch ' || number, now - interval '365 days', now, 100000, 'automatic', false
FROM fleet, generate_series(1, greatest(machines / 100, 100)) AS number;

-- Two entries of the machine's own, one of an operator.
INSERT INTO audit_entries (id, at, actor_kind, actor_id, actor_name, action, resource_kind, resource_id, request_id, after)
SELECT pg_temp.id_at(at, 'audit ' || which || ' ' || number), at,
       CASE which WHEN 3 THEN 'api-key' ELSE 'machine' END,
       CASE which WHEN 3 THEN pg_temp.id_at(now - interval '365 days', 'key ' || operator)::text ELSE id::text END,
       CASE which WHEN 3 THEN 'operator-' || operator END,
       (ARRAY['machine.enroll', 'certificate.issue', 'machine.patch'])[which],
       (ARRAY['machine', 'certificate', 'machine'])[which],
       CASE which WHEN 2 THEN md5('certificate ' || number) ELSE id::text END,
       md5(number::text), jsonb_build_object('key', encode(key, 'hex'), 'machine', jsonb_build_object('serial_number', serial_number))
FROM generate_series(1, 3) AS which, numbered,
     -- One operator is a script that did half of everything, until it was replaced; another did three things.
     LATERAL (SELECT enrolled_at + interval '1 millisecond' * which AS at,
                     CASE WHEN number IN (10, 20, 30) THEN 99 WHEN number < machines / 2 THEN 0 ELSE 1 + number % 90 END AS operator) AS more;
INSERT INTO audit_entries (id, at, actor_kind, actor_id, actor_name, action, resource_kind, resource_id, request_id)
SELECT pg_temp.id_at(created_at, 'audit of token ' || id), created_at, 'api-key',
       pg_temp.id_at(created_at, 'key 0')::text, 'operator-0', 'enrollment-token.create', 'enrollment-token', id::text, md5(id::text)
FROM enrollment_tokens;
INSERT INTO audit_seals (sequence, entry_id, hash)
SELECT row_number() OVER (ORDER BY id), id, sha256(convert_to(id::text, 'UTF8')) FROM audit_entries;
