package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// servedPod makes a pod whose gateways answer for the zone of these tests.
func servedPod(t *testing.T) *netlab.NS {
	t.Helper()
	bridge := makeBridge(t, "br-"+t.Name()[:8])
	pod := makePod(t, t.Name()[:12], bridge, "10.2.0.1/32", "fd00::2:1/128")
	s := newTestServer(ServerConfig{Forward: exchangerFunc(answerElsewhere)}, clientsZone(t))
	run(t, s, netip.MustParseAddrPort(gateway4+":53"), netip.AddrPortFrom(netip.MustParseAddr(gateway6).WithZone(bridge.Attrs().Name), 53))
	return pod
}

// rotates asks until each of some addresses was the first.
func rotates(t *testing.T, want []string, first func() string) {
	t.Helper()
	seen := map[string]bool{}
	for range 100 {
		if seen[first()] = true; len(seen) == len(want) {
			break
		}
	}
	for _, addr := range want {
		if !seen[addr] {
			t.Errorf("first were %v, never %s", seen, addr)
		}
	}
}

func TestDigAgrees(t *testing.T) {
	pod := servedPod(t)
	for _, gateway := range []string{gateway4, gateway6 + "%eth0"} {
		ask := func(args ...string) string {
			return dig(t, pod, append([]string{"@" + gateway, "+tries=2", "+time=5"}, args...)...)
		}
		tests := []struct {
			name  string
			args  string
			want  []string // in the output
			lines int      // of the answer
		}{
			{"A", "web.overlay.local A", []string{"status: NOERROR", "flags: qr aa rd ra;", "10.1.0.1", "10.1.0.2", "udp: 1232"}, 2},
			{"AAAA", "web.overlay.local AAAA", []string{"status: NOERROR", "fd00::1"}, 1},
			{"PTR", "-x 10.1.0.1", []string{"status: NOERROR", "PTR\tweb.overlay.local."}, 1},
			{"NXDOMAIN", "nobody.overlay.local A", []string{"status: NXDOMAIN", "SOA", "flags: qr aa rd ra;"}, 0},
			{"NODATA", "turn.overlay.local AAAA", []string{"status: NOERROR", "SOA"}, 0},
			{"truncated", "+ignore crowd.overlay.local A", []string{"flags: qr aa tc rd ra;"}, 74},
			{"then by TCP", "crowd.overlay.local A", []string{"Truncated, retrying in TCP mode"}, 200},
			{"512 without EDNS", "+noedns +ignore crowd.overlay.local A", []string{"flags: qr aa tc rd ra;"}, 29},
			{"DO", "+dnssec web.overlay.local A", []string{"flags: do; udp: 1232"}, 2},
			{"a later EDNS", "+edns=1 +noednsneg web.overlay.local A", []string{"status: BADVERS"}, 0},
			{"others", "example.com A", []string{"status: NOERROR", "flags: qr rd ra;", "192.0.2.1"}, 1},
			{"transfer", "overlay.local AXFR", []string{"Transfer failed."}, 0},
			{"another class", "-c CH version.bind TXT", []string{"status: REFUSED"}, 0},
			{"everything", "web.overlay.local ANY +notcp", []string{`HINFO	"RFC8482" ""`}, 1},
		}
		for _, test := range tests {
			t.Run(gateway+" "+test.name, func(t *testing.T) {
				got := ask(strings.Fields(test.args)...)
				for _, want := range test.want {
					if !strings.Contains(got, want) {
						t.Errorf("no %q in\n%s", want, got)
					}
				}
				if strings.Contains(got, "extra bytes") || strings.Contains(got, "communications error") || test.lines > 0 && !strings.Contains(got, fmt.Sprintf("ANSWER: %d,", test.lines)) {
					t.Errorf("want %d answers, got\n%s", test.lines, got)
				}
			})
		}
		rotates(t, []string{"10.1.1.1", "10.1.1.2", "10.1.1.3"}, func() string {
			first, _, _ := strings.Cut(ask("+short", "turn.overlay.local", "A"), "\n")
			return first
		})
	}
}

func TestTheGoResolverAgrees(t *testing.T) {
	pod := servedPod(t)
	for _, gateway := range []string{gateway4, gateway6 + "%eth0"} {
		t.Run(gateway, func(t *testing.T) {
			var networks []string
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
				networks = append(networks, network)
				inside := pod.Do(func() error {
					conn, err = new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(gateway, "53"))
					return err
				})
				return conn, inside
			}}
			look := func(network, name string) []string {
				addrs, err := r.LookupNetIP(t.Context(), network, name)
				if err != nil {
					return []string{notFound(err)}
				}
				var all []string
				for _, addr := range addrs {
					all = append(all, addr.Unmap().String())
				}
				return all
			}
			got := map[string][]string{
				"A":        sortedTexts(look("ip4", "web.overlay.local.")),
				"AAAA":     look("ip6", "web.overlay.local."),
				"NXDOMAIN": look("ip4", "nobody.overlay.local."),
				"NODATA":   look("ip6", "turn.overlay.local."),
				"others":   look("ip4", "example.com."),
			}
			names, err := r.LookupAddr(t.Context(), "10.1.0.1")
			if got["PTR"] = names; err != nil {
				t.Error(err)
			}
			want := map[string][]string{"A": {"10.1.0.1", "10.1.0.2"}, "AAAA": {"fd00::1"}, "PTR": {"web.overlay.local."}, "NXDOMAIN": {"not found"}, "NODATA": {"not found"}, "others": {"192.0.2.1"}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			networks = nil
			if n := len(look("ip4", "crowd.overlay.local.")); n != 200 || !slices.Contains(networks, "tcp") {
				t.Errorf("%d addresses of 200 by %v", n, networks)
			}
			rotates(t, []string{"10.1.1.1", "10.1.1.2", "10.1.1.3"}, func() string { return look("ip4", "turn.overlay.local.")[0] })
		})
	}
}

// notFound is "not found" for what a resolver takes as told, not as failed.
func notFound(err error) string {
	var fault *net.DNSError
	if errors.As(err, &fault) && fault.IsNotFound {
		return "not found"
	}
	return err.Error()
}

func sortedTexts(all []string) []string {
	slices.Sort(all)
	return all
}

// TestGlibcAgrees asks by programs that use the C library's resolver, with a
// resolv.conf of their own.
func TestGlibcAgrees(t *testing.T) {
	pod := servedPod(t)
	for _, gateway := range []string{gateway4, gateway6 + "%eth0"} {
		t.Run(gateway, func(t *testing.T) {
			dir := netlab.TestDir(t)
			must(t, os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+gateway+"\nsearch overlay.local\noptions timeout:5 attempts:2\n"), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "nsswitch.conf"), []byte("hosts: dns\n"), 0o644))
			program := func(args ...string) (string, int) { return runWithFiles(t, pod, dir, args...) }
			tests := []struct {
				name string
				args []string
				want string
				code int
			}{
				{"A", []string{"getent", "ahostsv4", "web.overlay.local"}, "10.1.0.1 10.1.0.2", 0},
				{"by search", []string{"getent", "ahostsv4", "web"}, "10.1.0.1 10.1.0.2", 0},
				{"AAAA", []string{"getent", "ahostsv6", "web.overlay.local"}, "fd00::1", 0},
				{"PTR", []string{"getent", "hosts", "10.1.0.1"}, "10.1.0.1", 0},
				{"NXDOMAIN", []string{"getent", "ahosts", "nobody.overlay.local"}, "", 2},
				{"others", []string{"getent", "ahostsv4", "example.com"}, "192.0.2.1", 0},
				{"NODATA is told apart", []string{"python3", "-c", pythonCodes}, "-2 -5", 0},
			}
			for _, test := range tests {
				out, code := program(test.args...)
				if got := firstFields(out); got != test.want || code != test.code {
					t.Errorf("%s: got %q, status %d, want %q, %d\n%s", test.name, got, code, test.want, test.code, out)
				}
			}
			if out, _ := program("getent", "hosts", "10.1.0.1"); !strings.Contains(out, " web.overlay.local") {
				t.Errorf("the name of an address: %s", out)
			}
			if out, _ := program("getent", "ahostsv4", "crowd.overlay.local"); len(strings.Fields(firstFields(out))) != 200 {
				t.Errorf("of 200 addresses:\n%s", out)
			}
			rotates(t, []string{"10.1.1.1", "10.1.1.2", "10.1.1.3"}, func() string {
				out, _ := program("python3", "-c", "import socket; print(socket.gethostbyname('turn.overlay.local'))")
				return strings.TrimSpace(out)
			})
		})
	}
}

// pythonCodes prints EAI_NONAME for a name that is not there and EAI_NODATA for one without such records.
const pythonCodes = `
import socket
for name in 'nobody', 'turn':
  try: print(socket.getaddrinfo(name + '.overlay.local', None, socket.AF_INET6))
  except socket.gaierror as e: print(e.errno)
`

// runWithFiles runs a program in a pod with files of dir in place of those of
// /etc, and returns its output and status.
func runWithFiles(t *testing.T, pod *netlab.NS, dir string, args ...string) (string, int) {
	t.Helper()
	const script = `dir=$1; shift
for f in resolv.conf nsswitch.conf; do
  at=$(readlink -m /etc/$f); mkdir -p "$(dirname "$at")"; [ -e "$at" ] || : >"$at"
  mount --bind "$dir/$f" "$at" || exit 99
done
exec "$@"`
	out, err := pod.Command(t.Context(), "sh", append([]string{"-c", script, "sh", dir}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %v: %v", args, err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// firstFields is the first word of each line, each once, in order.
func firstFields(out string) string {
	var all []string
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 0 {
			all = append(all, fields[0])
		}
	}
	return strings.Join(slices.Compact(sortedTexts(all)), " ")
}
