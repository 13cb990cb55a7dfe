package attach

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestNamesFitTheKernel(t *testing.T) {
	valid := regexp.MustCompile(`^zl-[A-Za-z0-9._-]{1,10}-[pb]$`)
	seen := map[string]bool{}
	for _, length := range []int{1, 2, 12, 13, 64, 255, 256, 4096} {
		for _, sign := range []string{"x", "/", "ä", " "} {
			text := strings.Repeat(sign, length)
			for try := range nameTries {
				port, bridge := portName(Key{ContainerID: text, IfName: "eth0"}, try), bridgeName(text, try)
				for _, name := range []string{port, bridge} {
					if !valid.MatchString(name) || seen[name] {
						t.Errorf("%d times %q, try %d: %q, seen before: %v", length, sign, try, name, seen[name])
					}
					seen[name] = true
				}
				if !ourName(port, portSuffix) || !ourName(bridge, bridgeSuffix) || ourName(port, bridgeSuffix) {
					t.Errorf("%q and %q are not told apart as ours", port, bridge)
				}
			}
		}
	}
}

func TestKeyID(t *testing.T) {
	known := Key{ContainerID: "c1", IfName: "eth0"}
	if digest := (Key{Digest: known.ID()}); digest.ID() != known.ID() {
		t.Errorf("a key known by its digest has the ID %s, want %s", digest.ID(), known.ID())
	}
	// The daemon's tombstones are named by the same rule.
	if got, want := known.ID(), "d72e032fedd94c16f31250b1845eb1ceaf0e6aa079211c2739318c3290c740d8"; got != want {
		t.Errorf("ID = %s, want %s", got, want)
	}
	if (Key{ContainerID: "c1", IfName: "eth1"}).ID() == known.ID() {
		t.Error("two interfaces of one container have one ID")
	}
}

func TestDeriveMAC(t *testing.T) {
	mac := deriveMAC("sandbox", "c1")
	if err := checkMAC(mac); err != nil || mac[0]&2 == 0 {
		t.Errorf("%s is no locally administered unicast address: %v", mac, err)
	}
	if mac.String() != deriveMAC("sandbox", "c1").String() || mac.String() == deriveMAC("port", "c1").String() {
		t.Error("not stable, or not different by role")
	}
}

func TestValidate(t *testing.T) {
	good := Spec{
		Key: Key{ContainerID: "c1", IfName: "eth0"}, Netns: os.Stdin, Segment: "default", MTU: 1420,
		Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("fd42::5")},
	}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	addr := func(s ...string) func(*Spec) { return func(spec *Spec) { spec.Addrs = parseAddrs(s...) } }
	name := func(s string) func(*Spec) { return func(spec *Spec) { spec.Key.IfName = s } }
	for what, spoil := range map[string]func(*Spec){
		"no container":                func(s *Spec) { s.Key.ContainerID = "" },
		"a digest":                    func(s *Spec) { s.Key.Digest = "00" },
		"no segment":                  func(s *Spec) { s.Segment = "" },
		"no namespace":                func(s *Spec) { s.Netns = nil },
		"negative MTU":                func(s *Spec) { s.MTU = -1 },
		"MTU beyond the kernel's":     func(s *Spec) { s.MTU = 65536 },
		"MTU too small for IPv6":      func(s *Spec) { s.MTU = 1279 },
		"MTU too small for IPv4":      func(s *Spec) { s.MTU = 67; s.Addrs = s.Addrs[:1] },
		"no interface name":           name(""),
		"interface name of 16 bytes":  name("0123456789abcdef"),
		"interface name with a slash": name("a/b"),
		"interface name with a colon": name("a:b"),
		"interface name with a space": name("a b"),
		"interface name ..":           name(".."),
		"loopback":                    name("lo"),
		"a multicast MAC":             func(s *Spec) { s.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"a zero MAC":                  func(s *Spec) { s.MAC = make(net.HardwareAddr, 6) },
		"a long MAC":                  func(s *Spec) { s.MAC = make(net.HardwareAddr, 8) },
		"no address":                  func(s *Spec) { s.Addrs = nil },
		"an invalid address":          func(s *Spec) { s.Addrs = []netip.Addr{{}} },
		"an address twice":            addr("10.0.0.1", "10.0.0.1"),
		"loopback address":            addr("127.0.0.1"),
		"multicast address":           addr("224.0.0.1"),
		"unspecified address":         addr("0.0.0.0"),
		"link-local address":          addr("fe80::5"),
		"IPv4 in IPv6":                addr("::ffff:10.0.0.1"),
		"address with a zone":         addr("fd42::5%eth0"),
	} {
		spec := good
		spoil(&spec)
		if err := spec.validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
}
