#!/bin/sh
# Creates the server's database role when the database of compose.yaml is created. `assay-server migrate` then grants
# the role the privileges it needs.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$ASSAY_SERVER_PASSWORD" <<'END'
CREATE ROLE assay_server LOGIN PASSWORD :'password';
END
