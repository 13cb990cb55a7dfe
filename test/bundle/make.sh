#!/usr/bin/env bash
# make.sh OUT PROGRAMS PACKAGE...: compiles the tests of the packages into OUT,
# a folder that runs without Go on another machine or as another user.
set -euo pipefail
out=$1 programs=$2
shift 2

mkdir -p "$out"
cp "$(dirname "$0")/run.sh" "$out/"
cp -r "$programs" "$out/bin"
# A test holds the manifests against the settings.
mkdir -p "$out/tests/deploy"
cp -r deploy/*.yaml deploy/coredns.corefile deploy/windows "$out/tests/deploy/"
for package in "$@"; do
  package=${package%/}
  into=$out/tests/$package
  mkdir -p "$into"
  # Static, since the other machine may have another C library.
  CGO_ENABLED=0 "${GO:-go}" test -c -vet=off -ldflags '-s -w' -tags failpoints -o "$into/test" "./$package"
  if [ -d "$package/testdata" ]; then cp -r "$package/testdata" "$into/"; fi
done
