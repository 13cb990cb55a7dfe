#!/usr/bin/env bash
# up.sh IMAGE-ARCHIVE: a kind cluster whose network is the image's, checked. With
# a cluster that is up it brings the image into it. `make up` calls it with KIND,
# the kind command, and CLUSTER; KIND_NODE_IMAGE and KIND_CONFIG may name other
# nodes, E2E_IMAGE another agnhost for the check.
set -euo pipefail
archive=$1
here=$(cd "$(dirname "$0")" && pwd)
deploy=$here/../../deploy
kubectl() { command kubectl --context "kind-$CLUSTER" "$@"; }
say() { echo "== $* ($SECONDS s)"; }

if $KIND get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
  say "cluster $CLUSTER is up"
else
  say "create cluster $CLUSTER"
  $KIND create cluster --name "$CLUSTER" --config "${KIND_CONFIG:-$here/cluster.yaml}" ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"}

  # make e2e compares with it what an uninstall leaves behind.
  say "keep what the nodes are like without a network"
  kubectl -n kube-system rollout status daemonset kube-proxy --timeout 180s
  before=$(mktemp -d)
  for node in $($KIND get nodes --name "$CLUSTER"); do
    KUBECTL="kubectl --context kind-$CLUSTER" "$here/state.sh" "$node" >"$before/$node"
  done
  kubectl -n kube-system create configmap zlayer-before --from-file="$before"
  rm -r "$before"
fi

say "load the image into the nodes"
$KIND load image-archive "$archive" --name "$CLUSTER"

say "apply deploy/daemonset.yaml"
running=$(kubectl -n zlayer-system get daemonset overlayd -o name 2>/dev/null || true)
kubectl apply -f "$deploy/daemonset.yaml"
# The image's name stays the same, so an earlier one would go on running.
[ -z "$running" ] || kubectl -n zlayer-system rollout restart daemonset overlayd

trouble() {
  kubectl get nodes,pods -A -o wide || true
  kubectl -n zlayer-system logs daemonset/overlayd --tail 50 || true
  echo "the network did not come up: above are the pods and a daemon's log"
}
trap '[ $? -eq 0 ] || trouble' EXIT

say "wait for daemons, nodes and DNS"
kubectl -n zlayer-system rollout status daemonset overlayd --timeout 180s
kubectl wait node --all --for condition=Ready --timeout 120s
kubectl -n kube-system rollout status deployment coredns --timeout 180s

# As the README says, in place of what an earlier run has added.
say "have the cluster's DNS ask this network's for its names"
corefile() { kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}'; }
before=$(corefile)
awk '/^overlay\.local:53 / {ours = 1} !ours; /^}/ {ours = 0}' <<<"$before" | cat - "$deploy/coredns.corefile" |
  kubectl -n kube-system create configmap coredns --from-file=Corefile=/dev/stdin --dry-run=client -o yaml |
  kubectl -n kube-system patch configmap coredns --patch-file /dev/stdin
if [ "$before" != "$(corefile)" ]; then # it would read the file again by itself, but when?
  kubectl -n kube-system rollout restart deployment coredns
  kubectl -n kube-system rollout status deployment coredns --timeout 180s
fi

say "check that pods reach each other"
sed "s|registry.k8s.io/e2e-test-images/agnhost:2.56|${E2E_IMAGE:-&}|" "$here/check.yaml" | kubectl apply -f -
kubectl -n zlayer-check rollout status daemonset web --timeout 120s
pods=$(kubectl -n zlayer-check get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{"\n"}{end}')
failed=0
while read -r pod node _; do
  while read -r _ to ips; do
    for ip in $ips; do
      case $ip in *:*) target="[$ip]:8080" ;; *) target=$ip:8080 ;; esac
      if kubectl -n zlayer-check exec "$pod" -- /agnhost connect --timeout=5s "$target" </dev/null; then
        echo "  $node -> $to  $target  ok"
      else
        echo "  $node -> $to  $target  FAILED"
        failed=1
      fi
    done
  done <<<"$pods"
  kubectl -n zlayer-check exec "$pod" -- /agnhost connect --timeout=5s web.zlayer-check.svc.cluster.local:80 </dev/null &&
    echo "  $node -> service web by its name  ok" || failed=1
  while read -r _ to _; do
    kubectl -n zlayer-check exec "$pod" -- /agnhost connect --timeout=5s "$to.node.overlay.local:10250" </dev/null &&
      echo "  $node -> $to by its name  ok" || failed=1
  done <<<"$pods"
done <<<"$pods"
kubectl delete -f "$here/check.yaml" >/dev/null
[ $failed -eq 0 ]

say "the cluster is up"
cat <<END
Try:
  kubectl --context kind-$CLUSTER get nodes,pods -A -o wide
  kubectl --context kind-$CLUSTER -n zlayer-system exec daemonset/overlayd -- /overlayd status
  kubectl --context kind-$CLUSTER -n zlayer-system logs daemonset/overlayd
  make down
END
