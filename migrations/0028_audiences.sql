-- Audiences whose grant tokens differ from the usual ones.

CREATE TABLE audiences (
    id uuid PRIMARY KEY,
    audience text NOT NULL UNIQUE,
    token jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE audiences IS 'Audiences whose grant tokens differ from the usual ones. Other audiences need no row.';
COMMENT ON COLUMN audiences.id IS 'UUIDv7.';
COMMENT ON COLUMN audiences.audience IS 'The relying party, as permissions name it.';
COMMENT ON COLUMN audiences.token IS 'How the tokens differ: form of aud, lifetime, subject, further claims.';
COMMENT ON COLUMN audiences.created_at IS 'When it was created.';
COMMENT ON COLUMN settings.grants_version IS 'Rises with every change to permissions, grants or audiences, in the same transaction. An evaluation under another version is outdated.';
