-- Rotation of the server's own keys: which of them signs now, which comes next, and which is past and still relied on.

ALTER TABLE sealed_keys
    ADD COLUMN state text NOT NULL DEFAULT 'current' CHECK (state IN ('requested', 'next', 'current', 'previous', 'retired')),
    ADD COLUMN root_id uuid,
    ADD COLUMN intermediates bytea[] NOT NULL DEFAULT '{}',
    ADD COLUMN signs_from timestamptz,
    ADD COLUMN retires_at timestamptz,
    ADD COLUMN retired_at timestamptz;
UPDATE sealed_keys SET signs_from = created_at;
UPDATE sealed_keys SET root_id = (SELECT id FROM sealed_keys WHERE purpose = 'root-ca') WHERE purpose = 'issuing-ca';
ALTER TABLE sealed_keys
    ALTER COLUMN state DROP DEFAULT,
    ALTER COLUMN sealed DROP NOT NULL,
    ADD CHECK (sealed IS NOT NULL OR state = 'retired' OR purpose = 'root-ca'),
    ADD CHECK (sealed IS NULL OR state <> 'retired'),
    ADD CHECK (purpose <> 'root-ca' OR certificate IS NOT NULL),
    ADD CHECK (purpose <> 'issuing-ca' OR (certificate IS NOT NULL AND root_id IS NOT NULL) = (state <> 'requested')),
    ADD CHECK ((signs_from IS NULL) = (state = 'requested')),
    ADD CHECK (state <> 'previous' OR retires_at IS NOT NULL),
    ADD CHECK ((retired_at IS NOT NULL) = (state = 'retired'));
-- Of two that rotate at once, one wins.
CREATE UNIQUE INDEX sealed_keys_one_requested ON sealed_keys (purpose) WHERE state = 'requested';
CREATE UNIQUE INDEX sealed_keys_one_next ON sealed_keys (purpose) WHERE state = 'next';
CREATE UNIQUE INDEX sealed_keys_one_current ON sealed_keys (purpose) WHERE state = 'current';
COMMENT ON COLUMN sealed_keys.sealed IS 'AES-256-GCM of the private key (PKCS#8) or, for nonces, of 32 random bytes. Null for a root that somebody else holds, and once the key is retired.';
COMMENT ON COLUMN sealed_keys.state IS 'requested: a CSR of it is out; next: published and does not sign yet; current: signs; previous: what it signed may be valid; retired: nobody relies on it. A root is what the issuing CAs under it are.';
COMMENT ON COLUMN sealed_keys.root_id IS 'Of an issuing CA, the root that its path ends at: sealed_keys.id.';
COMMENT ON COLUMN sealed_keys.intermediates IS 'Of an issuing CA under somebody else''s root, the certificates between them in DER, the nearest first.';
COMMENT ON COLUMN sealed_keys.signs_from IS 'When it begins to sign, or began.';
COMMENT ON COLUMN sealed_keys.retires_at IS 'Of a previous key, when it retires at the earliest; an issuing CA waits for its last certificate as well.';
COMMENT ON COLUMN sealed_keys.retired_at IS 'When it was retired, and its private key erased.';

ALTER TABLE settings ADD COLUMN authority_version bigint NOT NULL DEFAULT 1;
COMMENT ON COLUMN settings.authority_version IS 'Rises with every change to sealed_keys, in the same transaction: replicas read the keys anew. Also the sequence of the SPIFFE bundle.';

-- Whether an issuing CA has certificates that are valid, and how many.
CREATE INDEX certificates_by_issuer ON certificates (issuer_id, not_after);
