//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// proxyModes are the modes to test, the one that the cluster is in first, and
// has the cluster return to it in the end.
func proxyModes(t *testing.T) []string {
	t.Helper()
	now, err := proxyMode(t.Context(), lab.nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	modes := []string{now}
	for _, mode := range []string{"nftables", "iptables"} {
		if mode != now {
			modes = append(modes, mode)
		}
	}
	t.Cleanup(func() {
		if err := lab.changeProxyMode(context.Background(), now); err != nil {
			t.Error(err)
		}
	})
	return modes
}

func setProxyMode(t *testing.T, mode string) {
	t.Helper()
	if err := lab.changeProxyMode(t.Context(), mode); err != nil {
		t.Fatal(err)
	}
}

// proxyMode asks the kube-proxy of a node.
func proxyMode(ctx context.Context, n *node) (string, error) {
	return n.get(ctx, "http://127.0.0.1:10249/proxyMode")
}

// get reads a page that a program on the node serves.
func (p place) get(ctx context.Context, url string) (string, error) {
	transport := &http.Transport{DialContext: p.dial, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", fmt.Errorf("at %s: %w", p.name, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s at %s: %s: %s", url, p.name, response.Status, body)
	}
	return string(body), err
}

// changeProxyMode edits kube-proxy's configuration, as kubeadm and kind write
// it, and restarts the daemons that are in another mode.
func (c *cluster) changeProxyMode(ctx context.Context, mode string) error {
	if now, err := proxyMode(ctx, c.nodes[0]); err == nil && now == mode {
		return nil
	}
	configs := c.client.CoreV1().ConfigMaps("kube-system")
	config, err := configs.Get(ctx, "kube-proxy", metav1.GetOptions{})
	if err != nil {
		return err
	}
	line := regexp.MustCompile(`(?m)^mode: .*$`)
	if !line.MatchString(config.Data["config.conf"]) {
		return fmt.Errorf("kube-proxy's ConfigMap names no mode")
	}
	config.Data["config.conf"] = line.ReplaceAllString(config.Data["config.conf"], "mode: "+mode)
	if _, err := configs.Update(ctx, config, metav1.UpdateOptions{}); err != nil {
		return err
	}
	err = c.client.CoreV1().Pods("kube-system").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "k8s-app=kube-proxy"})
	if err != nil {
		return err
	}
	return together(c.nodes, func(n *node) error {
		return poll(ctx, patience, func(ctx context.Context) error {
			now, err := proxyMode(ctx, n)
			if err == nil && now != mode {
				err = fmt.Errorf("kube-proxy of %s is in mode %s", n.name, now)
			}
			return err
		})
	})
}
