package dns

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The cases of the original's test_parse_resolv_conf are among these.
func TestParseResolvConf(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", nil},
		{"ordinary", "search example\nnameserver 10.0.0.2\nnameserver 2001:db8::2\noptions edns0\n", []string{"10.0.0.2", "2001:db8::2"}},
		{"comments", "# nameserver 10.0.0.1\n;nameserver 10.0.0.2\nnameserver 10.0.0.3 # the third\n#\n", []string{"10.0.0.3"}},
		{"duplicates", "nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.2\nnameserver ::ffff:10.0.0.3\n", []string{"10.0.0.2", "10.0.0.3"}},
		{"no end of line", "nameserver 10.0.0.2", []string{"10.0.0.2"}},
		{"tabs, spaces, CRLF", "\tnameserver\t 10.0.0.2 \r\nnameserver 10.0.0.3\r\n", []string{"10.0.0.2", "10.0.0.3"}},
		{"interface of a link-local address", "nameserver fe80::1%eth0\nnameserver fe80::1%eth1\n", []string{"fe80::1%eth0", "fe80::1%eth1"}},
		{"interface of another", "nameserver 2001:db8::1%eth0\n", []string{"2001:db8::1"}},
		{"link-local nowhere", "nameserver fe80::1\n", nil},
		{"nobody's", "nameserver 0.0.0.0\nnameserver ::\nnameserver 224.0.0.251\nnameserver 10.0.0.2\n", []string{"10.0.0.2"}},
		{"loopback stays", "nameserver 127.0.0.53\nnameserver ::1\n", []string{"127.0.0.53", "::1"}},
		{"garbage", "nameserver\nnameserver dns.example\nnameserver 10.0.0.2:53\nnameservers 10.0.0.1\n\x00\xff\nnameserver 10.0.0.2\n", []string{"10.0.0.2"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, addr := range parseResolvConf(test.text) {
				got = append(got, addr.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseResolvConf(f *testing.F) {
	for _, seed := range []string{"", "nameserver 10.0.0.2\n", "nameserver fe80::1%eth0", "#\n;\nnameserver ::\n", "nameserver\r\n\x00", "nameserver 1.1.1.1 nameserver 2.2.2.2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		servers := parseResolvConf(text)
		for i, addr := range servers {
			checkServer(t, addr)
			if slices.Contains(servers[:i], addr) {
				t.Errorf("%v twice", addr)
			}
		}
	})
}

// hostFiles writes files below a folder that stands for the host's root.
func hostFiles(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The original dropped a resolver on loopback and asked public servers instead,
// which know nothing of names inside a company's network.
func TestHostUpstreamsBehindStub(t *testing.T) {
	const both = "nameserver 10.0.0.2\nnameserver 10.0.0.3\n"
	tests := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"no stub", map[string]string{resolvConf: both, resolvedConf: "nameserver 10.9.9.9\n"}, []string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"systemd-resolved", map[string]string{resolvConf: "nameserver 127.0.0.53\noptions edns0 trust-ad\n", resolvedConf: both},
			[]string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"its other address", map[string]string{resolvConf: "nameserver 127.0.0.54\n", resolvedConf: both}, []string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"is not NetworkManager's", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: both, networkManagerConf: "nameserver 10.9.9.9\n"},
			[]string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"dnsmasq of NetworkManager", map[string]string{resolvConf: "nameserver 127.0.0.1\n", networkManagerConf: both, resolvedConf: "nameserver 10.9.9.9\n"},
			[]string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"dnsmasq on IPv6", map[string]string{resolvConf: "nameserver ::1\n", networkManagerConf: both}, []string{"10.0.0.2:53", "10.0.0.3:53"}},
		{"NetworkManager that knows none", map[string]string{resolvConf: "nameserver 127.0.0.1\n", networkManagerConf: "# none\n"}, []string{"127.0.0.1:53"}},
		{"a resolver of the host's own", map[string]string{resolvConf: "nameserver 127.0.0.1\n"}, []string{"127.0.0.1:53"}},
		{"one beside systemd-resolved", map[string]string{resolvConf: "nameserver 127.0.0.1\n", resolvedConf: both}, []string{"127.0.0.1:53"}},
		{"one on IPv6 beside systemd-resolved", map[string]string{resolvConf: "nameserver ::1\n", resolvedConf: both}, []string{"[::1]:53"}},
		{"Docker's", map[string]string{resolvConf: "nameserver 127.0.0.11\n"}, []string{"127.0.0.11:53"}},
		{"systemd-resolved that knows none", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: "# No DNS servers known.\n"},
			[]string{"127.0.0.53:53"}},
		{"systemd-resolved that tells itself", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: "nameserver 127.0.0.53\n"},
			[]string{"127.0.0.53:53"}},
		{"a resolver of the host's own behind systemd-resolved", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: "nameserver 127.0.0.1\n"},
			[]string{"127.0.0.1:53"}},
		{"stub among others", map[string]string{resolvConf: "nameserver 10.0.0.1\nnameserver 127.0.0.53\nnameserver 10.0.0.3\n", resolvedConf: both},
			[]string{"10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"}},
		{"link-local behind it", map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: "nameserver fe80::1%wlan0\n"},
			[]string{"[fe80::1%wlan0]:53"}},
		{"none: no public ones", map[string]string{resolvConf: "search example\n"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			hostFiles(t, root, test.files)
			got, err := hostUpstreams(root)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, stringsOf(got)); diff != "" {
				t.Errorf("upstreams (-want +got):\n%s", diff)
			}
		})
	}
}

// One that is our own listener is left out, be it told by the host or configured.
func TestUpstreamsOwn(t *testing.T) {
	root := t.TempDir()
	hostFiles(t, root, map[string]string{resolvConf: "nameserver 169.254.1.1\nnameserver 127.0.0.1\nnameserver 10.0.0.2\n"})
	own := map[netip.AddrPort]bool{}
	config := ForwarderConfig{Roots: []string{root}, Own: func(addr netip.AddrPort) bool { return own[addr] }, Log: slog.New(slog.DiscardHandler)}
	f := NewForwarder(config)
	// Listeners come and go.
	for _, test := range []struct {
		own  string
		want []string
	}{
		{"", []string{"169.254.1.1:53", "127.0.0.1:53", "10.0.0.2:53"}},
		{"169.254.1.1:53", []string{"127.0.0.1:53", "10.0.0.2:53"}},
		{"127.0.0.1:53", []string{"10.0.0.2:53"}},
	} {
		if test.own != "" {
			own[netip.MustParseAddrPort(test.own)] = true
		}
		if diff := cmp.Diff(test.want, stringsOf(f.Upstreams())); diff != "" {
			t.Errorf("upstreams (-want +got):\n%s", diff)
		}
	}
	config.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("169.254.1.1:53"), netip.MustParseAddrPort("169.254.1.1:54")}
	if diff := cmp.Diff([]string{"169.254.1.1:54"}, stringsOf(NewForwarder(config).Upstreams())); diff != "" {
		t.Errorf("configured upstreams (-want +got):\n%s", diff)
	}
}

// Those that are configured are the only ones.
func TestUpstreamsConfigured(t *testing.T) {
	root := t.TempDir()
	hostFiles(t, root, map[string]string{resolvConf: "nameserver 10.0.0.2\n"})
	f := runForwarder(t, ForwarderConfig{
		Roots: []string{root}, Log: slog.New(slog.DiscardHandler),
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.1:54")},
	})
	if diff := cmp.Diff([]string{"192.0.2.2:53", "192.0.2.1:54"}, stringsOf(f.Upstreams())); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
}

// The original read the host's upstreams once.
func TestUpstreamsFollowHost(t *testing.T) {
	noLeaks(t)
	replace := func(t *testing.T, root, name, text string) {
		t.Helper()
		hostFiles(t, root, map[string]string{name + ".new": text})
		if err := os.Rename(filepath.Join(root, name+".new"), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t *testing.T, root, target, name string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.Symlink(target, path+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	behind := map[string]string{resolvConf: "nameserver 127.0.0.53\n", resolvedConf: "nameserver 10.0.0.1\n"}
	tests := []struct {
		name   string
		before map[string]string
		change func(t *testing.T, root string)
		want   []string
	}{
		{"written in place", map[string]string{resolvConf: "nameserver 10.0.0.1\n"}, func(t *testing.T, root string) {
			hostFiles(t, root, map[string]string{resolvConf: "nameserver 10.0.0.2\n"})
		}, []string{"10.0.0.2:53"}},
		{"renamed over", map[string]string{resolvConf: "nameserver 10.0.0.1\n"}, func(t *testing.T, root string) {
			replace(t, root, resolvConf, "nameserver 10.0.0.2\n")
		}, []string{"10.0.0.2:53"}},
		{"becomes a link", map[string]string{resolvConf: "nameserver 10.0.0.1\n", "run/other/conf": "nameserver 10.0.0.2\n"}, func(t *testing.T, root string) {
			link(t, root, "../run/other/conf", resolvConf)
		}, []string{"10.0.0.2:53"}},
		{"behind the stub", behind, func(t *testing.T, root string) {
			replace(t, root, resolvedConf, "nameserver 10.0.0.2\n")
		}, []string{"10.0.0.2:53"}},
		{"no more there", map[string]string{resolvConf: "nameserver 10.0.0.1\n"}, func(t *testing.T, root string) {
			replace(t, root, resolvConf, "search example\n")
		}, nil},
		{"folders come", nil, func(t *testing.T, root string) { hostFiles(t, root, behind) }, []string{"10.0.0.1:53"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			hostFiles(t, root, test.before)
			f := runForwarder(t, ForwarderConfig{Roots: []string{root}, Log: slog.New(slog.DiscardHandler)})
			if test.before != nil {
				if diff := cmp.Diff([]string{"10.0.0.1:53"}, stringsOf(f.Upstreams())); diff != "" {
					t.Errorf("upstreams before (-want +got):\n%s", diff)
				}
			}
			test.change(t, root)
			waitFor(t, func() bool { return cmp.Equal(test.want, stringsOf(f.Upstreams())) })
		})
	}
}

// What a link leads to is followed too, wherever it is.
func TestUpstreamsFollowLink(t *testing.T) {
	root := t.TempDir()
	hostFiles(t, root, map[string]string{"run/other/conf": "nameserver 10.0.0.1\n", "etc/hosts": ""})
	if err := os.Symlink("../run/other/conf", filepath.Join(root, resolvConf)); err != nil {
		t.Fatal(err)
	}
	f := runForwarder(t, ForwarderConfig{Roots: []string{root}, Log: slog.New(slog.DiscardHandler)})
	hostFiles(t, root, map[string]string{"run/other/conf": "nameserver 10.0.0.2\n"})
	waitFor(t, func() bool { return cmp.Equal([]string{"10.0.0.2:53"}, stringsOf(f.Upstreams())) })
}

// A container sees its host's files below another root, where links lead to what
// they lead to on the host.
func TestUpstreamsLinkOfAnotherRoot(t *testing.T) {
	for _, target := range []string{"/run/systemd/resolve/stub-resolv.conf", "/var/run/systemd/resolve/stub-resolv.conf", "../run/systemd/resolve/stub-resolv.conf", "../../../run/systemd/resolve/stub-resolv.conf"} {
		t.Run(target, func(t *testing.T) {
			root := t.TempDir()
			hostFiles(t, root, map[string]string{
				"etc/hosts": "", "run/systemd/resolve/stub-resolv.conf": "nameserver 127.0.0.53\n", resolvedConf: "nameserver 10.0.0.1\n",
			})
			if err := os.Symlink(target, filepath.Join(root, resolvConf)); err != nil {
				t.Fatal(err)
			}
			upstreams, err := hostUpstreams(root)
			if diff := cmp.Diff([]string{"10.0.0.1:53"}, stringsOf(upstreams)); err != nil || diff != "" {
				t.Errorf("%v, upstreams (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Where the host's file is not to be seen, that of the container counts, until it
// is; and never again, since that one is as old as the container.
func TestUpstreamsOfTheBestRoot(t *testing.T) {
	host, container, log := t.TempDir(), t.TempDir(), new(logLines)
	hostFiles(t, container, map[string]string{resolvConf: "nameserver 10.0.0.1\n"})
	f := NewForwarder(ForwarderConfig{Roots: []string{host, container}, Log: slog.New(slog.NewTextHandler(log, nil))})
	remove := func() {
		if err := os.Remove(filepath.Join(host, resolvConf)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string) func() {
		return func() { hostFiles(t, host, map[string]string{resolvConf: text}) }
	}
	for _, step := range []struct {
		name   string
		change func()
		want   []string
		says   string
	}{
		{"none of the host", func() {}, []string{"10.0.0.1:53"}, "taking this container's"},
		{"the host's", write("nameserver 10.0.0.2\n"), []string{"10.0.0.2:53"}, "known again"},
		{"gone", remove, []string{"10.0.0.2:53"}, "keeping those known"},
		{"without servers", write(""), nil, "other names are refused"},
	} {
		step.change()
		for range 3 {
			f.refresh()
		}
		if diff := cmp.Diff(step.want, stringsOf(f.Upstreams())); diff != "" {
			t.Errorf("%s: upstreams (-want +got):\n%s", step.name, diff)
		}
		if got := log.count(step.says); got != 1 {
			t.Errorf("%s: %d lines with %q", step.name, got, step.says)
		}
	}
}

// While the file cannot be read the last good set stays, and one line says so.
func TestUpstreamsUnreadable(t *testing.T) {
	root, log := t.TempDir(), new(logLines)
	hostFiles(t, root, map[string]string{resolvConf: "nameserver 10.0.0.1\n"})
	f := NewForwarder(ForwarderConfig{Roots: []string{root}, Log: slog.New(slog.NewTextHandler(log, nil))})
	path := filepath.Join(root, resolvConf)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f.refresh()
	}
	if diff := cmp.Diff([]string{"10.0.0.1:53"}, stringsOf(f.Upstreams())); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	if got := log.count("keeping those known"); got != 1 {
		t.Errorf("%d lines about it", got)
	}
	hostFiles(t, root, map[string]string{resolvConf: "nameserver 10.0.0.2\n"})
	for range 3 {
		f.refresh()
	}
	if diff := cmp.Diff([]string{"10.0.0.2:53"}, stringsOf(f.Upstreams())); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	if got := log.count("known again"); got != 1 {
		t.Errorf("%d lines about its end", got)
	}
	hostFiles(t, root, map[string]string{resolvConf: ""})
	for range 3 {
		f.refresh()
	}
	if got := log.count("other names are refused"); got != 1 {
		t.Errorf("%d lines about an empty file", got)
	}
}

// logLines collects what is logged.
type logLines struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}
