#!/usr/bin/env bash
# `make test`: every part in turn, then where the time went and the list of skipped tests.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp -d)
began=$SECONDS
status=0
for part in setup check test-unit test-store test-apiserver test-controllers test-engine test-cluster; do
  started=$SECONDS
  printf '\n==== make %s\n' "$part"
  if make --no-print-directory "$part" 2>&1 | tee "$log/$part"; then verdict=ok; else verdict=FAILED; status=1; fi
  printf '%-16s %-7s %5d s\n' "$part" "$verdict" $((SECONDS - started)) >>"$log/times"
  [ $status = 0 ] || break
done
printf '\n==== skipped tests\n'
cat "$log"/test-* 2>/dev/null | grep -h '^SKIPPED' || echo none
printf '\n==== where the time went (%d s in all)\n' $((SECONDS - began))
cat "$log/times"
exit $status
