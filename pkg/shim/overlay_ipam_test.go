package shim

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIPAllocStats(t *testing.T) {
	v4 := PoolStatus{Prefix: cidr("10.200.3.0/24"), Capacity: 253, Used: 10, Resting: 2}
	v6 := PoolStatus{Prefix: cidr("fd00::/64"), Capacity: math.MaxUint64, Used: 5, Resting: 1}
	for _, test := range []struct {
		name  string
		pools []PoolStatus
		want  IPAllocStats
	}{
		{"one", []PoolStatus{v4}, IPAllocStats{Total: 253, Allocated: 10, Resting: 2, Pools: []PoolStatus{v4}}},
		{"both families", []PoolStatus{v4, v6}, IPAllocStats{Total: math.MaxUint64, Allocated: 15, Resting: 3, Pools: []PoolStatus{v4, v6}}},
		{"negative", []PoolStatus{{Capacity: 1, Used: -1, Resting: -1}}, IPAllocStats{Total: 1, Pools: []PoolStatus{{Capacity: 1, Used: -1, Resting: -1}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, _ := managed(t, func(context.Context, Request) (Response, error) { return &StatusSnapshot{Pools: test.pools}, nil }, OverlayOptions{})
			got, err := m.IPAllocStats(t.Context())
			if diff := cmp.Diff(test.want, got, compareNetip); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	t.Run("a daemon that does not count", func(t *testing.T) {
		m, _ := managed(t, obliging, OverlayOptions{})
		if _, err := m.IPAllocStats(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v, want errors.ErrUnsupported", err)
		}
	})
}

func at(id string, addresses ...string) AttachmentStatus {
	return AttachmentStatus{ContainerID: id, IfName: "eth0", Segment: "default", Addresses: ips(addresses...)}
}

// ipamManager is a manager of a daemon whose attachments the test changes.
func ipamManager(t *testing.T, attached *[]AttachmentStatus) *OverlayManager {
	t.Helper()
	m, _ := managed(t, func(context.Context, Request) (Response, error) {
		return &StatusSnapshot{
			Node: "n1", Attachments: *attached, Pools: []PoolStatus{{Prefix: cidr("10.200.3.0/24"), Capacity: 253, Used: len(*attached)}},
		}, nil
	}, OverlayOptions{DataDir: filepath.Join(t.TempDir(), "data")})
	return m
}

func TestRestoreIPAMState(t *testing.T) {
	saved := []AttachmentStatus{at("a", "10.200.3.5", "fd00::5"), at("b", "10.200.3.6"), {Key: "beef", Addresses: ips("10.200.3.7")}}
	for _, test := range []struct {
		name string
		now  []AttachmentStatus
		lost []LostAddress
	}{
		{"the same in another order", []AttachmentStatus{saved[2], saved[0], saved[1]}, nil},
		{"more", append([]AttachmentStatus{at("c", "10.200.3.8")}, saved...), nil},
		{"one gone", saved[1:], []LostAddress{{ip("10.200.3.5"), "a/eth0", ""}, {ip("fd00::5"), "a/eth0", ""}}},
		{"one address gone", []AttachmentStatus{at("a", "10.200.3.5"), saved[1], saved[2]}, []LostAddress{{ip("fd00::5"), "a/eth0", ""}}},
		{"another holds it", []AttachmentStatus{saved[0], at("x", "10.200.3.6"), saved[2]}, []LostAddress{{ip("10.200.3.6"), "b/eth0", "x/eth0"}}},
		{"all gone", nil, []LostAddress{{ip("10.200.3.5"), "a/eth0", ""}, {ip("10.200.3.6"), "b/eth0", ""}, {ip("10.200.3.7"), "beef", ""}, {ip("fd00::5"), "a/eth0", ""}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			attached := saved
			m := ipamManager(t, &attached)
			if err := m.PersistIPAMState(t.Context()); err != nil {
				t.Fatal(err)
			}
			attached = test.now
			err := m.RestoreIPAMState(t.Context())
			var lost []LostAddress
			if failure, ok := errors.AsType[*AddressesLostError](err); ok {
				lost = failure.Lost
			} else if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.lost, lost, compareNetip); diff != "" {
				t.Errorf("lost (-want +got):\n%s", diff)
			}
			for _, l := range test.lost {
				if text := err.Error(); !strings.Contains(text, l.IP.String()) || !strings.Contains(text, l.Was) || !strings.Contains(text, l.Now) {
					t.Errorf("%q does not name %+v", text, l)
				}
			}
		})
	}
}

func TestAddressesLostErrorIsBounded(t *testing.T) {
	lost := make([]LostAddress, 5000)
	for i := range lost {
		lost[i] = LostAddress{IP: ip("10.0.0.1"), Was: "c/eth0"}
	}
	if text := (&AddressesLostError{Lost: lost}).Error(); len(text) > 400 || !strings.HasSuffix(text, "and 4992 more") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}

func TestPersistedFile(t *testing.T) {
	attached := []AttachmentStatus{at("a", "10.200.3.5")}
	m := ipamManager(t, &attached)
	for range 2 {
		if err := m.PersistIPAMState(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(m.opt.DataDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "overlay-ipam.json" {
		t.Fatalf("folder holds %v, %v", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %s, %v", info.Mode(), err)
	}
	// A write that cannot be finished leaves the file as it was, and nothing beside it.
	path := filepath.Join(m.opt.DataDir, ipamFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.PersistIPAMState(t.Context()); err == nil {
		t.Error("replaced a folder that holds something")
	}
	if entries, err := os.ReadDir(m.opt.DataDir); err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v, %v", entries, err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	attached := []AttachmentStatus{}
	m := ipamManager(t, &attached)
	if err := m.RestoreIPAMState(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing written down: %v, want fs.ErrNotExist", err)
	}
	if err := os.MkdirAll(m.opt.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty": "", "torn": `{"version":1,"attachments":[{"contai`, "of tomorrow": `{"version":2}`, "no version": `{}`, "no object": `[]`,
		"attachment of nobody": `{"version":1,"attachments":[{"addresses":["10.0.0.1"]}]}`,
		"address that is none": `{"version":1,"attachments":[{"key":"k","addresses":["10.0.0"]}]}`,
		"empty address":        `{"version":1,"attachments":[{"key":"k","addresses":[""]}]}`,
		"too long":             strings.Repeat(" ", MaxFrame) + `{"version":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(m.opt.DataDir, ipamFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.RestoreIPAMState(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names the file", err)
			}
		})
	}
}

func TestNoDataDir(t *testing.T) {
	m, r := managed(t, obliging, OverlayOptions{})
	for _, err := range []error{m.PersistIPAMState(t.Context()), m.RestoreIPAMState(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "DataDir") {
			t.Errorf("got %v, want an error that names DataDir", err)
		}
	}
	r.want(t)
}

// FuzzParseIPAM reads files. What is accepted must have lost nothing against
// itself, and everything against an empty node.
func FuzzParseIPAM(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `{"version":1}`, `{"version":1,"pools":null,"attachments":[{"container_id":"a","ifname":"eth0","addresses":["10.0.0.1","fd00::1"]},{"key":"k","addresses":null}]}`,
		`{"version":1,"attachments":[{"key":"k","addresses":["10.0.0.1","10.0.0.1"]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		saved, err := parseIPAM(doc)
		if err != nil {
			return
		}
		holders, addresses := make(map[netip.Addr]string), 0
		for _, attachment := range saved.Attachments {
			for _, addr := range attachment.Addresses {
				if other, taken := holders[addr]; taken && other != attachment.name() {
					return // no node gives an address to two
				}
				holders[addr] = attachment.name()
				addresses++
			}
		}
		if lost := lostAddresses(saved.Attachments, saved.Attachments); len(lost) > 0 {
			t.Errorf("lost against itself: %v", lost)
		}
		if lost := lostAddresses(saved.Attachments, nil); len(lost) != addresses {
			t.Errorf("%d of %d lost", len(lost), addresses)
		}
	})
}
