-- The migration to grounds of keys took a key for the first one of its token if the token had no older enrollment on
-- record. Retention may have deleted one. The key of another computer could thus count as the Mac's own, and an
-- attestation would have counted for it.
--
-- Such a key keeps its ground if all other uses of the token are on record. Later keys are not concerned: the server
-- read the token's uses when it admitted them.
WITH on_record AS (
    SELECT token_id, count(*) AS enrollments FROM enrollments WHERE token_id IS NOT NULL GROUP BY token_id
), shown AS (
    SELECT machines.id
    FROM machines
         JOIN enrollment_tokens AS token ON token.id = machines.ground_token_id
         LEFT JOIN on_record ON on_record.token_id = token.id
         LEFT JOIN enrollments AS own ON own.token_id = token.id AND own.key_thumbprint = machines.current_key
    WHERE token.uses <= coalesce(on_record.enrollments, 0) + CASE WHEN own.id IS NULL THEN 1 ELSE 0 END
)
UPDATE machines SET ground_of_key = false
WHERE ground_of_key AND ground_enrollment_id IS NULL AND apple_attestation_id IS NULL
  AND key_created_at < (SELECT coalesce(max(installed_on), 'infinity') FROM _sqlx_migrations WHERE version = 20)
  AND id NOT IN (SELECT id FROM shown);
