#!/usr/bin/env bash
# An MLflow server for many machines: runs and accounts in PostgreSQL, artifacts in an S3-compatible store, passwords.
#
# Needs: pip install 'mlflow[auth]>=3.15,<4' psycopg2-binary boto3; an empty database; a bucket; in the environment
#   PGHOST PGUSER PGDATABASE PGPASSWORD                 the database
#   ARTIFACTS (s3://bucket/folder), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and MLFLOW_S3_ENDPOINT_URL if not AWS
#   MLFLOW_AUTH_ADMIN_PASSWORD                          12 or more characters; the first start gives it to admin
#   MLFLOW_FLASK_SERVER_SECRET_KEY                      any long random text, the same in every process
#   ALLOWED_HOSTS                                       the names clients use, e.g. mlflow.example.org,127.0.0.1:5000
#
#     cluster/mlflow/serve.sh
#     export MLFLOW_TRACKING_URI=https://mlflow.example.org MLFLOW_TRACKING_USERNAME=searcher   # and ..._PASSWORD
#     loraxs-search launch movie_reviews
#
# An account for searches. It owns what it makes, and can read the rest. Admin may do everything.
#     curl --user admin --json '{"username": "searcher", "password": "..."}' \
#       https://mlflow.example.org/api/2.0/mlflow/users/create
#
# TLS: the server does not encrypt passwords. So it listens on 127.0.0.1, and a proxy on the same machine offers https
# to others. A whole Caddyfile for it: `mlflow.example.org { reverse_proxy 127.0.0.1:5000 }`. Set HOST=0.0.0.0 only if
# something else keeps strangers out.
set -euo pipefail

: "${PGHOST:?}" "${PGUSER:?}" "${PGDATABASE:?}" "${PGPASSWORD:?}" "${ARTIFACTS:?}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}" "${ALLOWED_HOSTS:?}"

export MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-$(dirname "$(realpath "$0")")/basic_auth.ini}
export MLFLOW_DISABLE_TELEMETRY=true
exec mlflow server --app-name basic-auth \
  --backend-store-uri postgresql+psycopg2:// --artifacts-destination "$ARTIFACTS" \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" --allowed-hosts "$ALLOWED_HOSTS"
