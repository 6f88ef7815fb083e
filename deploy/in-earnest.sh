#!/bin/sh
# Starts what is not ours (in-earnest.sh COMMAND…) as our services start: without LLMOS_DEV=1 a secret that everybody
# can read in .env.example is refused, before anything is made with it.
set -eu
case "${LLMOS_DEV:-0}" in 1 | [tT]* | [yY]* | [oO][nN]) exec "$@" ;; esac
env | while IFS= read -r variable; do
  case "$variable" in
    *=*change-me*)
      echo "llmos: ${variable%%=*} holds a secret of .env.example: set your own, or LLMOS_DEV=1 for a trial" >&2
      exit 2
      ;;
  esac
done
exec "$@"
