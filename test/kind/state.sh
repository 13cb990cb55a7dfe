#!/usr/bin/env bash
# state.sh NODE: whatever this network could leave behind on a node of kind, a
# line each, sorted: links, addresses, routes, rules, firewall, kernel settings,
# files, and what its Node says. KUBECTL and E2E_ENGINE name other commands than
# kubectl and docker.
#
# Left out is what Kubernetes itself changes while a network comes and goes: the
# rules of kube-proxy and kubelet, the tables and chains that every user of
# iptables makes, taints of the node's conditions, and whether those are true. And
# the chains CNI-HOSTPORT-*, which the plugin portmap makes for all networks of a
# node together and empties, but never removes.
set -euo pipefail
node=$1

{
  "${E2E_ENGINE:-docker}" exec -i "$node" sh -eu <<'END'
ip -o link | sed -E 's/^[0-9]+: /link /'
ip -o addr | sed -E 's/^[0-9]+: /address /'
for family in -4 -6; do
  ip $family route show table all | sed "s/^/route $family /"
  ip $family rule | sed "s/^/rule $family /"
done
nft -s list ruleset 2>/dev/null | awk '
  /^table/ { table = $2 " " $3; chain = ""
             if (table !~ / kube-proxy$/ && table !~ /^ip6? (nat|mangle|filter|raw)$/) print "firewall " table
             next }
  table ~ / kube-proxy$/ || /(KUBE|CNI-HOSTPORT)-/ && !/^\t[a-z]/ { next }
  /^\t[a-z]+ .*{$/ { chain = $1 " " $2
                     if ($2 !~ /^(KUBE-.*|CNI-HOSTPORT-.*|PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)$/) print "firewall " table " " chain
                     next }
  /^\t\t/ && !/^\t\ttype .* hook/ && chain !~ / (KUBE|CNI-HOSTPORT)-/ { print "firewall " table " " chain ": " $0 }'
sysctl -a -r '^net\.(ipv4\.ip_forward$|ipv[46]\.conf\.|bridge\.)' 2>/dev/null | sed 's/^/sysctl /'
for folder in /opt/cni /etc/cni /etc/zlayer /run/zlayer /run/wireguard /var/lib/zlayer /run/systemd/resolve /run/NetworkManager /run/resolvconf /run/netconfig; do
  [ -e $folder ] || continue
  find $folder -type f -exec sha256sum {} + | sed 's/^/content /'
  find $folder -printf 'file %p %M %u\n'
done
END
  ${KUBECTL:-kubectl} get node "$node" -o go-template='
{{- range $key, $value := .metadata.annotations}}annotation {{$key}} {{$value}}{{"\n"}}{{end}}
{{- range .spec.taints}}taint {{.key}} {{.effect}}{{"\n"}}{{end}}
{{- range .status.conditions}}condition {{.type}}{{"\n"}}{{end}}' | grep -v '^taint node.kubernetes.io/'
} | LC_ALL=C sort
