#!/usr/bin/env bash
# conformance.sh REGEX: Kubernetes' own end-to-end tests whose names match, on the
# cluster of KUBECONFIG. `make conformance` calls it unless CONFORMANCE names
# another command.
set -euo pipefail
command -v e2e.test >/dev/null || {
  echo "e2e.test is not in PATH: it is in kubernetes-test-linux-amd64.tar.gz of the cluster's version, at https://dl.k8s.io/VERSION/" >&2
  exit 1
}
exec e2e.test --kubeconfig="${KUBECONFIG:-$HOME/.kube/config}" --provider=skeleton --num-nodes=2 --ginkgo.no-color --ginkgo.silence-skips --ginkgo.focus="$1"
