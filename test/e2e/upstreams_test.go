//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestUpstreamsFollowTheNode changes the name servers of a node, as its resolver
// or its administrator would, and sees the daemon, whose pod has a copy of its own
// of the node's resolv.conf, ask the new ones.
func TestUpstreamsFollowTheNode(t *testing.T) {
	awaitServing(t)
	n := lab.nodes[1]
	conf, behind := n.path("/etc/resolv.conf"), n.path("/run/systemd/resolve/resolv.conf")
	before, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	status, err := n.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(behind)
		// Written in place: it is mounted into the node, which is a container.
		if err := os.WriteFile(conf, before, 0o644); err != nil {
			t.Error(err)
		}
		n.asks(t, "as before", status.DNS.Upstreams...)
	})
	for _, step := range []struct{ name, file, text, want string }{
		{"written anew", conf, "nameserver 192.0.2.1\n", "192.0.2.1:53"},
		{"a stub that tells nothing", conf, "nameserver 127.0.0.53\n", "127.0.0.53:53"},
		{"servers behind the stub", behind, "nameserver 192.0.2.2\n", "192.0.2.2:53"},
		{"others behind the stub", behind, "nameserver 192.0.2.3\n", "192.0.2.3:53"},
	} {
		replace := writeInPlace
		if step.file == behind {
			replace = writeAndRename
		}
		if err := replace(step.file, step.text); err != nil {
			t.Fatal(err)
		}
		n.asks(t, step.name, netip.MustParseAddrPort(step.want))
	}
}

func writeInPlace(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

// writeAndRename replaces a file as resolvers do.
func writeAndRename(path, text string) error {
	next := filepath.Join(filepath.Dir(path), ".next")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// asks waits until these are the servers that the node's daemon asks.
func (n *node) asks(t *testing.T, when string, want ...netip.AddrPort) {
	t.Helper()
	if err := poll(context.WithoutCancel(t.Context()), follows, func(ctx context.Context) error {
		status, err := n.status(ctx)
		if err != nil {
			return err
		}
		if !slices.Equal(status.DNS.Upstreams, want) {
			return fmt.Errorf("upstreams are %v, want %v", status.DNS.Upstreams, want)
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}
