#!/usr/bin/env bash
# From a space to a prediction: search -> promote -> predict, on a real model and real data.
# Usage: demo.sh BIN_FOLDER
set -euo pipefail
bin=$1
run() {
  printf '\n$ loraxs-search'
  for word in "$@"; do if [[ $word == *' '* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi; done
  printf '\n'
  "$bin/loraxs-search" "$@"
}

run launch movie_reviews
run promote
run predict movie-reviews \
  "a moving, funny film" \
  "two hours of my life that I will never get back" \
  "the plot is thin, but the actors carry it with charm"
printf '\nBrowse the trials:\n$ %s/loraxs-search ui\n' "$bin"
