package kube

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestAPIServerAway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	l.hasFault("")
	sets := l.plane.count()
	l.Break()
	l.hasFault("API server http://127.0.0.1")
	if l.kube.InForce() || l.kube.Stats().Reachable {
		t.Error("the set is in force while nobody knows")
	}
	l.Delete("nodes", "", "b")
	l.Create("nodes", peerObject("c", "10.244.2.0/24"))
	if got := l.plane.count(); got != sets {
		t.Errorf("%d sets were applied meanwhile", got-sets)
	}
	l.Mend()
	l.plane.hasPeers(t, "c")
	l.hasFault("")
}

func TestStartWithoutAPIServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	l.inForce()
	l.stop()
	if info, err := os.Stat(StateFile(l.dir)); err != nil || info.Mode().Perm() != ownersMode() {
		t.Fatalf("state file: %v, %v", info, err)
	}

	l.plane = &plane{}
	l.Break()
	l.start()
	l.plane.hasPeers(t, "b")
	l.hasFault("API server http://127.0.0.1")
	l.stop()

	l.plane = &plane{}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(l.dir, "kubeconfig")
	text := strings.Replace(mustRead(t, l.Kubeconfig(t)), l.URL(), "http://"+nobody.Addr().String(), 1)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start(func(c *Config) { c.Kubeconfig = config })
	l.plane.hasPeers(t, "b")
	l.hasFault("refused")
}

// TestStartAfterTheNodeWasMadeAnew must not come up with the slices of before.
func TestStartAfterTheNodeWasMadeAnew(t *testing.T) {
	l := newLab(t)
	l.start()
	l.plane.hasPeers(t)
	l.inForce()
	l.stop()
	l.Delete("nodes", "", "self")
	l.Create("nodes", nodeObject("self", "10.244.7.0/24"))
	l.plane = &plane{}
	l.start()
	l.plane.hasPeers(t)
	for _, set := range l.plane.all() {
		if got := set.Nodes[0].Slices[0].String(); got != "10.244.7.0/24" {
			t.Errorf("a set gave this node %s", got)
		}
	}
}

// TestStartWithTheSetOfBefore reads no Node again, and writes nothing.
func TestStartWithTheSetOfBefore(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	l.annotation(MTU, "1400")
	eventually(t, l.quiet)
	l.inForce()
	l.stop()
	reads, writes := l.Reads("/api/v1/nodes/b"), len(l.Writes())
	file := mustRead(t, StateFile(l.dir))
	l.plane = &plane{}
	l.start()
	l.plane.hasPeers(t, "b")
	l.inForce()
	eventually(t, l.quiet)
	if got := l.Reads("/api/v1/nodes/b") - reads; got != 0 {
		t.Errorf("b was read %d times again", got)
	}
	if got := l.Writes(); len(got) != writes {
		t.Errorf("written at a start without news: %v", got[writes:])
	}
	if got := mustRead(t, StateFile(l.dir)); got != file {
		t.Errorf("state file changed from\n%s\nto\n%s", file, got)
	}
}

func TestBadStateFileIsNone(t *testing.T) {
	l := newLab(t)
	if err := os.WriteFile(StateFile(l.dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.plane.hasPeers(t)
	l.hasFault("")
}

func FuzzParseSaved(f *testing.F) {
	good, err := json.Marshal(savedSet{Version: stateVersion, UID: "u", Cluster: prefixes("10.0.0.0/8"), Nodes: []savedNode{
		{Name: "self", UID: "u", PublicKey: "k", Slices: prefixes("10.0.0.0/24")},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":2,"uid":"u","cluster":["10.0.0.0/8"],"nodes":[]}`))
	f.Add([]byte(`{"version":1,"cluster":["10.0.0.0/33"]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseSaved(data, "self")
		if (set == nil) != (err != nil) {
			t.Fatalf("set %v, error %v", set, err)
		}
		if err != nil {
			return
		}
		again, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseSaved(again, "self"); err != nil {
			t.Errorf("what was read is not read again: %v\n%s", err, again)
		}
	})
}

func TestParseSaved(t *testing.T) {
	const good = `{"version":1,"uid":"u","cluster":["10.0.0.0/8"],"nodes":[{"name":"self","uid":"u","publicKey":"k","slices":["10.0.0.0/24"]}]}`
	if _, err := parseSaved([]byte(good), "self"); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, data, self, want string }{
		{"cut short", good[:40], "self", "unexpected end of JSON"},
		{"another version", strings.Replace(good, `"version":1`, `"version":2`, 1), "self", "version 2, want 1"},
		{"of another node", good, "other", "node other with a slice is not in it"},
		{"of another Node of the name", strings.Replace(good, `"uid":"u","cluster"`, `"uid":"v","cluster"`, 1), "self", "is not in it"},
		{"without a slice", strings.Replace(good, `"10.0.0.0/24"`, ``, 1), "self", "with a slice is not in it"},
		{"without a cluster", strings.Replace(good, `"10.0.0.0/8"`, ``, 1), "self", "no cluster prefix"},
		{"bad prefix", strings.Replace(good, `/24`, `/99`, 1), "self", "ParsePrefix"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseSaved([]byte(tt.data), tt.self); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// ownersMode is what a file that only its owner may read looks like: on Windows
// as any other, since a mode keeps nobody out there.
func ownersMode() fs.FileMode {
	if runtime.GOOS == "windows" {
		return 0o666
	}
	return 0o600
}
