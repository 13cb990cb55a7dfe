//go:build linux

package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestNS makes a network namespace that ends with the test.
func TestNS(t testing.TB, name string) *NS {
	t.Helper()
	n, err := NewNS(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestFabric makes an underlay that ends with the test, hosts included.
func TestFabric(t testing.TB, name string) *Fabric {
	t.Helper()
	f, err := NewFabric(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestDir makes a folder that ends with the test. Unlike that of t.TempDir its
// path is short whatever the test's name and TMPDIR are: a socket's path may
// have 107 bytes. It is in the lab's own /run.
func TestDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// BinariesEnv names the folder of programs that are already built with the tag
// "failpoints"; without it, Binary builds them.
const BinariesEnv = "ZLAYER_BIN"

// builtBinaries remembers the result per program for the life of the process.
var builtBinaries sync.Map //nolint:gochecknoglobals // one build per test process is the point

// Binary returns the path of the program cmd/NAME, built with failpoints: from
// the folder that ZLAYER_BIN names, else built once per process.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(BinariesEnv); dir != "" {
		return filepath.Join(dir, name)
	}
	build, _ := builtBinaries.LoadOrStore(name, sync.OnceValues(func() (string, error) { return buildBinary(name) }))
	path, err := build.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func buildBinary(name string) (string, error) {
	const dir = "/run/bin" // the lab's own /run, so the programs go with it
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-tags", "failpoints", "-o", path, "github.com/zlayer/zlayer-cni/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}
