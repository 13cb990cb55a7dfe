package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// kubeadm keeps what a cluster was made with in this ConfigMap.
const (
	kubeadmNamespace = "kube-system"
	kubeadmConfigMap = "kubeadm-config"
	kubeadmKey       = "ClusterConfiguration"
)

// kubeadmPrefixes are what kubeadm was told of the addresses of pods and services.
type kubeadmPrefixes struct {
	read           bool // the API server answered, if only that there is none
	pods, services []netip.Prefix
}

// readKubeadm asks for kubeadm's ConfigMap until there was an answer. A cluster
// without it, and one where we may not read it, is none of kubeadm's.
func (k *Kube) readKubeadm(ctx context.Context) error {
	if k.set.kubeadm.read {
		return nil
	}
	config, err := k.api.getConfigMap(ctx, kubeadmNamespace, kubeadmConfigMap)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		k.set.kubeadm.read = true
		return nil
	case err != nil:
		return fmt.Errorf("read ConfigMap %s/%s: %w", kubeadmNamespace, kubeadmConfigMap, err)
	}
	pods, services, err := parseSubnets(config.Data[kubeadmKey])
	if err != nil {
		k.log.Warn("kubeadm's ConfigMap not used", "op", "kube", "err", err)
	}
	k.set.kubeadm = kubeadmPrefixes{read: true, pods: pods, services: services}
	return nil
}

// parseSubnets reads networking.podSubnet and serviceSubnet of kubeadm's
// ClusterConfiguration: prefixes with commas between them. None is fine, and one
// that is wrong does not hide the other.
func parseSubnets(text string) (pods, services []netip.Prefix, err error) {
	var config struct {
		Networking struct {
			PodSubnet     string `json:"podSubnet"`
			ServiceSubnet string `json:"serviceSubnet"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w", kubeadmKey, oneLine{err})
	}
	pods, podErr := parseSubnet("podSubnet", config.Networking.PodSubnet)
	services, serviceErr := parseSubnet("serviceSubnet", config.Networking.ServiceSubnet)
	return pods, services, errors.Join(podErr, serviceErr)
}

func parseSubnet(key, text string) ([]netip.Prefix, error) {
	if text == "" {
		return nil, nil
	}
	var prefixes []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		found, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || found.Bits() == 0 || found.Addr().Is4In6() {
			return nil, fmt.Errorf("networking.%s: %.50q is not a network prefix", key, part)
		}
		prefixes = append(prefixes, found.Masked())
	}
	return prefixes, nil
}

// clusterPrefixes are those of the configuration, else kubeadm's, unless this
// node's own slices show that they are not true any more, else all slices.
func (k *Kube) clusterPrefixes(own []netip.Prefix, nodes []dataplane.Node) []netip.Prefix {
	if len(k.cfg.Cluster) > 0 {
		return k.cfg.Cluster
	}
	kubeadm := k.set.kubeadm.pods
	outside := func(slice netip.Prefix) bool {
		return !slices.ContainsFunc(kubeadm, func(c netip.Prefix) bool { return c.Bits() <= slice.Bits() && c.Contains(slice.Addr()) })
	}
	if len(kubeadm) > 0 && !slices.ContainsFunc(own, outside) {
		return kubeadm
	}
	var union []netip.Prefix
	for _, node := range nodes {
		union = append(union, node.Slices...)
	}
	slices.SortFunc(union, func(a, b netip.Prefix) int {
		if order := a.Addr().Compare(b.Addr()); order != 0 {
			return order
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(union)
}

// serviceCIDRs are kubeadm's, or those of the last set while that could not be
// read.
func (k *Kube) serviceCIDRs() []netip.Prefix {
	if !k.set.kubeadm.read && k.set.last != nil {
		return k.set.last.ServiceCIDRs
	}
	return k.set.kubeadm.services
}
