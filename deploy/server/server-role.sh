#!/bin/sh
# Makes the role that the server works as, when the database of compose.yaml is made. `assay-server migrate` gives it what
# serving needs.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$ASSAY_SERVER_PASSWORD" <<'END'
CREATE ROLE assay_server LOGIN PASSWORD :'password';
END
