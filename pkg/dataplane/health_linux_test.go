package dataplane

import (
	"context"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// TestSilentNodeIsTold has a node that nobody runs. It is always sent to, since
// it has a keepalive.
func TestSilentNodeIsTold(t *testing.T) {
	d := newPlane(t)
	told := make(chan PeerNews, 10)
	d.cfg.HealthInterval, d.cfg.OnPeer = 100*time.Millisecond, func(news PeerNews) { told <- news }
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	set := clusterOfOne()
	set.Nodes = append(set.Nodes, Node{
		Name: "gone", PublicKey: private.PublicKey().String(), Endpoint: "192.0.2.9:51820", Keepalive: time.Second,
		Slices: prefixes("10.200.9.0/24", "fd00:200:0:9::/64"),
	})
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	select {
	case news := <-told:
		if news.Node != "gone" || !news.Answers || news.Health.State != wireguard.Unhealthy {
			t.Errorf("told %+v, want that node gone does not answer", news)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is told of a silent node")
	}
	if silent := d.SilentNodes(); len(silent) != 1 || silent[0] != "gone" {
		t.Errorf("silent nodes %v, want gone", silent)
	}
	status, err := d.Status(t.Context())
	if err != nil || status.Health[deviceName()][private.PublicKey()].State != wireguard.Unhealthy {
		t.Errorf("status says %+v, %v", status.Health, err)
	}
}
