#!/usr/bin/env bash
# run.sh PROGRAMS: runs the programs for Windows of that folder, and the tests of
# the packages below as they are compiled for Windows, under Debian's Wine 8.
# Prints a line for each package, and all that was said of one that fails.
#
# It needs nothing but the packages that it names where they are missing. All it
# makes is in a temporary folder, Wine's own files among it, and goes with it.
# Two libraries are built for Wine, of dll: bcryptprimitives.c, without which no program
# of Go starts there, and computenetwork.c in the place of HCN.
#
# What is not run here: whatever listens on a named pipe, since go-winio's Accept
# hangs in Wine 8; adapters, routes and firewall rules, which Wine does not have.
set -euo pipefail
cd "$(dirname "$0")/../.."
programs=$(realpath "$1")
LANES=${LANES:-3} # how many packages at a time: most tests wait
DEADLINE=${DEADLINE:-300} # seconds for the tests of one package
WINE=${WINE:-$(command -v wine64 || echo /usr/lib/wine/wine64)}
WINESERVER=${WINESERVER:-$(command -v wineserver64 || echo /usr/lib/wine/wineserver64)}
CC=${WINDOWS_CC:-x86_64-w64-mingw32-gcc}

# What a package's tests are chosen by, and why.
declare -A choice=(
  [internal/durable]=''
  [internal/keylock]=''
  [internal/linkalias]=''
  [internal/linkname]=''
  [pkg/cni]=''
  [pkg/dataplane]=''
  [pkg/dataplane/attach]=''
  # Files of Linux; Windows does not tell by UDP that nobody listens; and of the time
  # that an answer may take, a silent server leaves half a second.
  [pkg/dataplane/dns]='-test.skip=^(TestHostUpstreams|TestUpstreams(Own|Configured|FollowHost|FollowLink|LinkOfAnotherRoot|OfTheBestRoot|Unreadable)|TestUpstreamNobodyListens|TestUpstreamReasons)|^TestForwardNoUpstream$/^no_resolv'
  [pkg/dataplane/firewall]=''
  [pkg/dataplane/ipam]=''
  [pkg/dataplane/nat]=''
  # Calls of the IP Helper API that Wine does not have.
  [pkg/dataplane/wireguard]='-test.skip=^(TestRefusals|TestOpenThatFailsLeavesRefusals|TestTunnelMTUOfThisMachine)$'
  [pkg/kube]=''
  # What listens on a pipe. A new test is run; if it listens, it hangs until DEADLINE.
  [pkg/shim]='-test.skip=^(ExampleOverlayManager|Test(TypedCalls|GCOfNil|Dial(Waits|Refuses)|Client(Matches|Reconnects|Repeats|GivesUp|DoesNot|Has|Survives|Against|RefusesToSend|DialsOnce|Close$)|AContextThatEnded|NewConnections|WhatTheDaemonRefuses|ConnectionLost|CallsWait|CloseEndsTheGreeting|Overlay(Requests|RefusesBadInput)|FailedAttach|HCNAttachments|WindowsAnswer|CleanupLeaves|DNSStatus|DaemonThatTellsNothing|DaemonWithoutNAT|Names(Are|Come|That)|IPAllocStats|RestoreIPAMState|PersistedFile|NATStatus|NATSwitchedOff|Setup(Global|Service)Overlay|SetupFails|ConcurrentSetups|ServiceBridges|SliceOfTheDaemon|ManagerDoesNotWait|AFreshDaemon|Serve(Answers|Handles|Bounds|Errors|Panic|Keeps|Closes|Reads|Drops|TooLarge|Thousand|Refuses|EndsThe|End(Cancels|Finishes))|Hello|Subscrib(ers|ing|eIs)|SubscriptionSkips|RequestOfALost|PublishNever|NextEnds|ListenDoesNotSteal|ListenAgain|PipeIsFor))'
  [pkg/shim/ifname]=''
  # The manifest for Linux, by paths of Linux; files have no owners of Windows; links are said to be
  # made and are not; nobody is told that a folder under watch was removed, which so keeps its name.
  [cmd/overlayd]='-test.skip=^(TestManifest|TestStateDir.*|TestNodesFileFollowsAConfigMap|TestNodesFileSurvivesItsFolder|TestFolderWatchOutlivesItsFolder)$'
  # The programs themselves.
  [test/wine]=''
)

mapfile -t packages < <(printf '%s\n' "${!choice[@]}" | sort -r) # the slowest are among the first

missing=()
command -v "$WINE" >/dev/null && command -v "$WINESERVER" >/dev/null || missing+=(wine64)
command -v "$CC" >/dev/null || missing+=(gcc-mingw-w64-x86-64-win32)
if [ ${#missing[@]} -gt 0 ]; then
  echo "make test-wine needs Wine and a compiler for Windows: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

work=$(mktemp -d)
export TMPDIR=$work WINEPREFIX=$work/prefix WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml=;winemenubuilder.exe=' WINESERVER
unset DISPLAY
mkdir "$work/home" # Wine shows a user's folders to the programs
leave() {
  [ ! -d "$WINEPREFIX" ] || { "$WINESERVER" -k; "$WINESERVER" -w; } || true # there may be none any more
  rm -rf "$work"
}
trap leave EXIT
trap 'exit 143' INT TERM HUP

# wine SECONDS PROGRAM ARGUMENTS...: runs a program that long.
wine() { HOME=$work/home timeout -k 10 "$1" "$WINE" "${@:2}" </dev/null; }

# library NAME LIBRARIES...: builds NAME.c to where Windows looks for its own.
library() {
  local name=$1
  shift
  "$CC" -std=gnu11 -Wall -Wextra -Wshadow -Wno-unused-parameter -O1 -shared -s -o "$WINEPREFIX/drive_c/windows/system32/$name.dll" "test/wine/dll/$name.c" "$@"
}

# run_package PACKAGE: its tests, where their testdata is.
run_package() {
  local package=$1 log=$work/${1//\//-}.log begin=$SECONDS status=0
  local arguments=(-test.v "-test.timeout=$((DEADLINE - 10))s")
  [ -z "${choice[$package]}" ] || arguments+=("${choice[$package]}")
  (cd "$package" && ZLAYER_BIN=Z:$programs wine "$DEADLINE" "$work/tests/${package##*/}.test.exe" "${arguments[@]}") >"$log" 2>&1 || status=$?
  local passed skipped
  passed=$(grep -cE '^ *--- PASS' "$log") || true
  skipped=$(grep -cE '^ *--- SKIP' "$log") || true
  # A skipped test would look as if it had been run.
  if [ $status -eq 0 ] && [ "$passed" -gt 0 ] && [ "$skipped" -eq 0 ]; then
    echo "ok    $package: $passed tests in $((SECONDS - begin)) s"
    return
  fi
  touch "$work/failed"
  echo "FAIL  $package: exit $status, $passed passed, $skipped skipped"$'\n'"$(tr -d '\r' <"$log" | grep -vE '^ *(=== (RUN|PAUSE|CONT|NAME)|--- PASS)')"
}

begin=$SECONDS
"$WINE" --version
wine "$DEADLINE" wineboot --init >"$work/boot.log" 2>&1 || { cat "$work/boot.log"; exit 1; }
library bcryptprimitives
library computenetwork -lole32
GOOS=windows GOARCH=amd64 "${GO:-go}" test -c -trimpath -vet=off -o "$work/tests/" "${packages[@]/#/./}"
echo "Wine's files, two libraries and the tests: $((SECONDS - begin)) s"
for package in "${packages[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$LANES" ]; do wait -n; done
  run_package "$package" &
done
wait
[ ! -e "$work/failed" ]
