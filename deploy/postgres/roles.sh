#!/bin/sh
# Run once by the postgres image on an empty volume: a database and a role for each service that keeps SQL.
set -eu
role() {
  psql -v ON_ERROR_STOP=1 -v name="$1" -v password="$2" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}
role gateway "$GATEWAY_DB_PASSWORD"
role scheduler "$SCHEDULER_DB_PASSWORD"
role registry "$REGISTRY_DB_PASSWORD"
