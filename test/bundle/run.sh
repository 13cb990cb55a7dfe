#!/bin/sh
# run.sh [--wireguard] [--may-skip] [-test.FLAG...]: runs every test binary of
# this folder and prints a line for each. A skipped test fails the run like a
# failed one unless --may-skip is given; either way its reason is printed. With
# --wireguard a kernel without WireGuard is refused first.
set -u
cd "$(dirname "$0")" || exit 1

if [ "${1:-}" = --wireguard ]; then
  shift
  modprobe wireguard 2>/dev/null # an ordinary user may still find it loaded
  if ! message=$(unshare -rn ip link add name probe type wireguard 2>&1); then
    echo "this kernel (Linux $(uname -r)) has no WireGuard: $message" >&2
    echo "name a command that reaches one: make test-kernel KERNEL_RUN='COMMAND', called as COMMAND FOLDER sh run.sh" >&2
    exit 1
  fi
fi

may_skip=no
if [ "${1:-}" = --may-skip ]; then
  shift
  may_skip=yes
fi

ZLAYER_BIN=$PWD/bin
export ZLAYER_BIN
echo
echo "namespace tests as $(id -un) on Linux $(uname -r)"
log=$(mktemp) || exit 1
failed=0
for binary in $(find tests -type f -name test | sort); do
  dir=${binary%/test}
  package=${dir#tests/}
  begin=$(date +%s)
  (cd "$dir" && ./test -test.v -test.timeout=30m "$@") >"$log" 2>&1 </dev/null
  status=$?
  took=$(($(date +%s) - begin))s
  skipped=$(grep -A 1 '^ *--- SKIP' "$log")
  if [ $status -ne 0 ]; then
    cat "$log"
    printf 'FAIL\t%s\t%s\n' "$package" "$took"
    failed=1
  elif [ -n "$skipped" ] && [ $may_skip = no ]; then
    printf '%s\nFAIL\t%s\t%s\ttests were skipped\n' "$skipped" "$package" "$took"
    failed=1
  else
    [ -z "$skipped" ] || echo "$skipped"
    printf 'ok\t%s\t%s\t%s tests\n' "$package" "$took" "$(grep -c '^--- PASS' "$log")"
  fi
done
rm -f "$log"
exit $failed
