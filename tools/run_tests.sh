#!/usr/bin/env bash
# `make test`: every part, also after one that failed, then a summary: the parts, skipped
# and failed tests, how to repeat a failed part in the same random order, disk, time. The exit code
# is the highest of all parts. Without what `setup` makes no part works, so its failure ends the
# run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# KVPOOL_BUSY=1: one core does other work meanwhile. It is the first one that this run may use.
if [ -n "${KVPOOL_BUSY:-}" ]; then
  first=$(python3.11 -c 'import os; print(min(os.sched_getaffinity(0)))')
  taskset -c "$first" python3.11 -c 'while True: pass' &
  trap "kill $!" EXIT
fi
# These mostly wait, or use less than one core: the parts of the second list run behind those of the first.
BESIDE=(check test-unit test-controllers test-paced)
BEHIND=(test-store test-apiserver)
PARTS=(setup "${BESIDE[@]}" "${BEHIND[@]}" test-engine test-demo test-cluster)
LAST_LINES=12
export COLUMNS=${COLUMNS:-100} # the width at which pytest cuts the lines of its summary
log=$(mktemp -d)
worst=0
failed=()
caches=$(python3.11 -m e2e.footprint caches 2>/dev/null || echo unknown)

# The lines of a part's log from pytest's own summary on; none for a part that is no pytest run or
# that broke off.
told() { awk '/ short test summary info /{on = 1} on' "$log/$1"; }
# The option that repeats the random order of a part.
order() { sed -n 's/^Using \(--randomly-seed=[0-9]*\)$/\1/p' "$log/$1" | head -n 1; }
row() { printf '%-17s %-8s %5s %8s  %s\n' "$@" | sed 's/ *$//'; }

# Make a part, print what it prints, and keep its log, its exit code and its row of the table.
run() {
  local started=$SECONDS verdict=ok code
  printf '\n==== make %s\n' "$1"
  make --no-print-directory "$1" 2>&1 | tee "$log/$1"
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || verdict=FAILED
  echo "$code" >"$log/$1.code"
  row "$1" $verdict "$code" $((SECONDS - started)) "$(order "$1")" >"$log/$1.row"
}
run setup
if [ "$(<"$log/setup.code")" = 0 ]; then
  for part in "${BEHIND[@]}"; do run "$part"; done >"$log/behind" 2>&1 &
  behind=$!
  for part in "${BESIDE[@]}"; do run "$part"; done
  printf '\n==== beside these: make %s\n' "${BEHIND[*]}"
  wait $behind
  cat "$log/behind"
  for part in "${PARTS[@]}"; do [ -e "$log/$part.row" ] || run "$part"; done
fi
for part in "${PARTS[@]}"; do
  [ -e "$log/$part.code" ] || continue
  code=$(<"$log/$part.code")
  [ "$code" = 0 ] || failed+=("$part")
  worst=$((code > worst ? code : worst))
done

printf '\n==== skipped tests\n'
skipped=$(for part in "${PARTS[@]}"; do
  [ ! -e "$log/$part" ] || told "$part" | grep '^SKIPPED'
done | fold -s -w 100)
echo "${skipped:-none}"
for part in "${failed[@]}"; do
  printf '\n==== failed: make %s\n' "$part"
  told "$part" | grep -E '^(FAILED|ERROR) ' | fold -s -w 100 | grep . ||
    tail -n "$LAST_LINES" "$log/$part"
  [ -z "$(order "$part")" ] || echo "in the same order: PYTEST_ADDOPTS=$(order "$part") make $part"
done
printf '\n==== parts\n'
row part verdict code seconds order
cat $(for part in "${PARTS[@]}"; do [ ! -e "$log/$part.row" ] || echo "$log/$part.row"; done)
printf '\n==== disk and time\n'
python3.11 -m e2e.footprint disk
minutes=$((SECONDS / 60))
printf 'time in all: %d min %d s%s\n' $minutes $((SECONDS % 60)) "${KVPOOL_BUSY:+; one core was kept busy}"
echo "caches at the start: $caches"
if [ "$worst" = 0 ]; then
  rm -r "$log"
else
  printf '\nmake test: failed: %s; everything that was printed: %s\n' "${failed[*]}" "$log"
fi
[ "${failed[0]:-}" != setup ] ||
  echo "make test: nothing was tested, because nothing works without make setup: mend that first"
exit "$worst"
