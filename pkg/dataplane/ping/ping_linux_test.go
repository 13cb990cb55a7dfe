package ping

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

func parse(texts ...string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

// own gives the lab's loopback addresses that are to answer, and waits until they
// do: the kernel makes routes of IPv6 addresses a moment later.
func own(t *testing.T, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		ip(t, "addr", "add", addr, "dev", "lo", "nodad")
		t.Cleanup(func() { ip(t, "addr", "del", addr, "dev", "lo") })
		bare, _, _ := strings.Cut(addr, "/")
		for begun := time.Now(); !isLocal(bare); {
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s does not become local", addr)
			}
		}
	}
}

func isLocal(addr string) bool {
	out, err := exec.Command("ip", "route", "get", addr).CombinedOutput()
	return err == nil && strings.HasPrefix(string(out), "local ")
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func TestEcho(t *testing.T) {
	own(t, "10.9.0.1/32", "10.9.0.2/32", "fd09::1/128", "fd09::2/128")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	targets := parse("10.9.0.2", "fd09::2", "10.9.0.2", "::ffff:10.9.0.2", "192.0.2.9", "2001:db8::9")
	answered, err := Echo(ctx, parse("10.9.0.1", "fd09::1", "10.9.9.9"), targets)
	if err != nil {
		t.Fatal(err)
	}
	if len(answered) != 2 || answered[targets[0]] <= 0 || answered[targets[1]] <= 0 {
		t.Errorf("answered: %v", answered)
	}
	quick, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if answered, err := Echo(quick, parse("10.9.0.1", "fd09::1"), targets[:2]); err != nil || len(answered) != 2 {
		t.Errorf("when all answer: %v, %v", answered, err)
	}
	if answered, err := Echo(quick, nil, nil); err != nil || len(answered) != 0 {
		t.Errorf("nobody: %v, %v", answered, err)
	}
}

// TestEchoOfManyAtOnce has far more answer at once than the socket's buffer takes.
func TestEchoOfManyAtOnce(t *testing.T) {
	own(t, "10.9.0.1/32")
	ip(t, "route", "add", "local", "10.8.0.0/16", "dev", "lo")
	t.Cleanup(func() { ip(t, "route", "del", "local", "10.8.0.0/16", "dev", "lo") })
	var targets []netip.Addr
	for addr := netip.MustParseAddr("10.8.1.0"); len(targets) < 1000; addr = addr.Next() {
		targets = append(targets, addr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answered, err := Echo(ctx, parse("10.9.0.1"), targets)
	if err != nil {
		t.Fatal(err)
	}
	if len(answered) != len(targets) {
		t.Errorf("%d of %d answered", len(answered), len(targets))
	}
}

func TestEchoThatThisHostCannotSend(t *testing.T) {
	own(t, "10.9.0.1/32")
	for name, from := range map[string][]netip.Addr{
		"no address of the family": parse("fd09::1"), "an address that it does not have": parse("10.9.0.77"),
	} {
		if answered, err := Echo(t.Context(), from, parse("10.9.0.1")); err == nil {
			t.Errorf("%s: %v, want an error", name, answered)
		}
	}
	own(t, "fd09::1/128", "fd09::2/128")
	if answered, err := Echo(t.Context(), parse("10.9.0.77", "fd09::1"), parse("10.9.0.1", "fd09::2")); err == nil || len(answered) != 1 {
		t.Errorf("one family of two: %v, %v", answered, err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if answered, err := Echo(canceled, parse("10.9.0.1"), parse("192.0.2.9", "10.9.0.9")); err != nil || len(answered) > 0 {
		t.Errorf("when there is no time: %v, %v", answered, err)
	}
}

// testRound is a round with two targets, and the answer of the second.
func testRound(t testing.TB, f family) (*round, []byte, net.Addr) {
	t.Helper()
	targets := [][]netip.Addr{parse("10.9.0.2", "10.9.0.3"), parse("fd09::2", "fd09::3")}[f]
	r := &round{
		family: f, from: parse("10.9.0.1", "fd09::1")[f], targets: targets, nonce: [nonceSize]byte{1, 2, 3, 4, 5, 6, 7, 8},
		asked: map[netip.Addr]uint32{targets[0]: 0, targets[1]: 1},
	}
	return r, answerOf(t, r, 1), &net.IPAddr{IP: targets[1].AsSlice()}
}

// answerOf is the answer to request number i.
func answerOf(t testing.TB, r *round, i uint32) []byte {
	t.Helper()
	answer, err := (&icmp.Message{Type: r.reply(), Body: &icmp.Echo{ID: r.id(), Seq: r.sequence(i), Data: r.data(i)}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestMatch(t *testing.T) {
	for _, f := range []family{echo4, echo6} {
		r, good, from := testRound(t, f)
		if i, ok := r.match(good, from); !ok || i != 1 {
			t.Errorf("%s: %d, %v", f.network(), i, ok)
		}
		request, err := r.render(1)
		if err != nil {
			t.Fatal(err)
		}
		other := *r
		other.nonce[7]++
		otherID := *r
		otherID.nonce[0]++
		for name, data := range map[string][]byte{
			"nothing": nil, "cut": good[:len(good)-1], "longer": append(good[:len(good):len(good)], 0), "a request": request,
			"another round's": answerOf(t, &other, 1), "another id's": answerOf(t, &otherID, 1), "another target's": answerOf(t, r, 0),
		} {
			if i, ok := r.match(data, from); ok {
				t.Errorf("%s: %s answers %d", f.network(), name, i)
			}
		}
		if i, ok := r.match(good, &net.IPAddr{IP: r.targets[0].AsSlice()}); ok {
			t.Errorf("%s: from another address it answers %d", f.network(), i)
		}
		if i, ok := r.match(good, &net.IPAddr{IP: net.IPv4bcast}); ok {
			t.Errorf("%s: from nobody it answers %d", f.network(), i)
		}
	}
}

func FuzzMatch(f *testing.F) {
	for _, fam := range []family{echo4, echo6} {
		_, good, _ := testRound(f, fam)
		f.Add(int(fam), good)
	}
	f.Add(0, []byte{3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28})
	f.Fuzz(func(t *testing.T, fam int, data []byte) {
		r, good, from := testRound(t, family(fam&1))
		if _, ok := r.match(data, from); ok && string(data[4:]) != string(good[4:]) {
			t.Errorf("%x answers", data)
		}
	})
}

// TestNothingStaysOpen has no context: a call that ends leaves no socket.
func TestNothingStaysOpen(t *testing.T) {
	own(t, "10.9.0.1/32")
	sockets := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := sockets()
	for range 20 {
		if _, err := Echo(t.Context(), parse("10.9.0.1"), parse("10.9.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	if now := sockets(); now > before {
		t.Errorf("%d open files, before %d", now, before)
	}
}
