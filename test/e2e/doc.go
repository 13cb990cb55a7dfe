// Package e2e checks a running kind cluster that has this network: what pods
// reach, what the wire between the nodes shows, and what happens when daemons,
// nodes and the API server come and go.
//
// Its tests have the build tag e2e; `make e2e` runs them against the cluster of
// KUBECONFIG, with one control plane and two workers on both IP families. They
// run as root on the machine that holds the nodes' containers: sockets are
// opened in the network namespaces of pods and nodes, so that the pods' image
// needs no tools, and a capture reads each node's frames from the first test to
// the last. Tests run one after the other, in the order of the files, and leave
// the cluster as they found it.
package e2e
