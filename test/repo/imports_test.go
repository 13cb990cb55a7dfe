package repo

import (
	"slices"
	"strings"
	"testing"
)

// TestForbiddenImports checks what each part of the module may never contain,
// directly or through another package. Tests may import what they compare with.
func TestForbiddenImports(t *testing.T) {
	const (
		shim      = module + "/pkg/shim"
		cni       = module + "/pkg/cni"
		dataplane = module + "/pkg/dataplane"
		daemon    = module + "/cmd/overlayd"
	)
	kernel := []string{
		"github.com/vishvananda/netlink", "github.com/mdlayher/netlink", "github.com/google/nftables",
		"golang.zx2c4.com/wireguard", "github.com/Microsoft/hcsshim", "github.com/Microsoft/hnslib",
	}
	rules := []struct {
		name   string
		scope  string // path below the module; what is inside it obeys too
		except string // path inside scope that may do it
		never  []string
		why    string
	}{
		{
			name: "plugin", scope: "cmd/zlayer-cni",
			never: append([]string{dataplane, daemon, "k8s.io", "github.com/prometheus", "github.com/spf13", "github.com/miekg"}, kernel...),
			why:   "every pod start pays for the plugin's size; the daemon does the work",
		},
		{
			name: "CNI words", scope: "pkg/cni",
			never: append([]string{dataplane, daemon, "k8s.io"}, kernel...),
			why:   "pkg/cni translates and touches no kernel",
		},
		{
			name: "wire", scope: "pkg/shim",
			never: append([]string{cni, dataplane, daemon, "k8s.io", "github.com/containernetworking"}, kernel...),
			why:   "the wire is below everything that speaks it",
		},
		{
			name: "data plane", scope: "pkg/dataplane",
			never: []string{shim, cni, daemon, "k8s.io", "github.com/containernetworking"},
			why:   "the daemon joins the wire and the data plane; neither knows the other",
		},
		{
			name: "Kubernetes", scope: "", except: "pkg/kube",
			never: []string{"k8s.io"},
			why:   "pkg/kube is the only user of client-go; the daemon reaches it there",
		},
	}
	for _, goos := range []string{"linux", "windows"} {
		all := goList(t, goos, "./...")
		for _, rule := range rules {
			t.Run(rule.name+" on "+goos, func(t *testing.T) {
				for _, p := range inScope(t, all, rule.scope, rule.except) {
					imports := p.Deps
					if rule.scope == "" { // whoever imports the exception contains it
						imports = p.Imports
					}
					for _, dep := range imports {
						if slices.ContainsFunc(rule.never, func(f string) bool { return under(dep, f) }) {
							t.Errorf("%s imports %s: %s", p.Path(), dep, rule.why)
						}
					}
				}
			})
		}
	}
}

// TestDataplaneSiblings checks that the parts of the data plane know nothing
// of each other, in their tests neither: pkg/dataplane alone joins them.
func TestDataplaneSiblings(t *testing.T) {
	const dataplane = module + "/pkg/dataplane"
	for _, goos := range []string{"linux", "windows"} {
		for _, p := range inScope(t, goList(t, goos, "./..."), "pkg/dataplane", "") {
			if p.ImportPath == dataplane {
				continue
			}
			part, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, dataplane+"/"), "/")
			for _, dep := range slices.Concat(p.Deps, p.TestImports, p.XTestImports) {
				if under(dep, dataplane) && !under(dep, dataplane+"/"+part) {
					t.Errorf("%s (%s) imports %s", p.Path(), goos, dep)
				}
			}
		}
	}
}

// TestNoTestCodeShipped checks that no program and no library contains what is
// made for tests.
func TestNoTestCodeShipped(t *testing.T) {
	for _, p := range inScope(t, goList(t, "linux", "./..."), "", "test") {
		for _, dep := range p.Deps {
			if dep == "testing" || under(dep, module+"/test") {
				t.Errorf("%s contains %s", p.Path(), dep)
			}
		}
	}
	for _, p := range goList(t, "linux", "./internal/failpoint") {
		if slices.Contains(p.GoFiles, "on.go") {
			t.Error("failpoints are compiled in without their build tag")
		}
	}
}

// inScope returns the packages of all that are inside scope and not inside
// except. A scope without packages is a rule that checks nothing.
func inScope(t *testing.T, all []goPackage, scope, except string) []goPackage {
	t.Helper()
	var packages []goPackage
	for _, p := range all {
		if (scope == "" || under(p.Path(), scope)) && (except == "" || !under(p.Path(), except)) {
			packages = append(packages, p)
		}
	}
	if len(packages) == 0 {
		t.Fatalf("no package in %q", scope)
	}
	return packages
}
