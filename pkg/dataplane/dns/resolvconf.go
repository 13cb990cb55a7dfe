package dns

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
)

const (
	// resolvConf is where a host keeps the servers it asks.
	resolvConf = "etc/resolv.conf"
	// resolvedConf is where systemd-resolved keeps those that it asks itself.
	resolvedConf = "run/systemd/resolve/resolv.conf"
	// networkManagerConf is where NetworkManager keeps those that its dnsmasq asks.
	networkManagerConf = "run/NetworkManager/no-stub-resolv.conf"
	// resolvConfLimit is above what any real one has.
	resolvConfLimit = 64 << 10
)

// HostFolders are those of a host, without "/" before them, in which its resolv.conf
// is, what that may be a link to, and what its stub resolvers ask: those that are
// mounted where a container follows its host.
func HostFolders() []string {
	return []string{
		path.Dir(resolvConf), path.Dir(resolvedConf), path.Dir(networkManagerConf),
		"run/resolvconf", // Debian's resolvconf and openresolv
		"run/netconfig",  // SUSE's netconfig
	}
}

// parseResolvConf returns the servers in the text of a resolv.conf, each once.
// Lines that make no sense cost only themselves, as they do in libc.
func parseResolvConf(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if addr, err := parseServer(words[1]); err == nil && !slices.Contains(servers, addr) {
			servers = append(servers, addr)
		}
	}
	return servers
}

// hostUpstreams are the servers that the host below root asks. A resolver of its
// own on loopback is seen through to those behind it, where it tells them: one more
// cache is of no use, and it may be set up to ask us.
func hostUpstreams(root string) ([]netip.AddrPort, error) {
	listed, err := readResolvConf(root, resolvConf)
	if err != nil {
		return nil, err
	}
	var upstreams []netip.AddrPort
	for _, server := range listed {
		servers := []netip.Addr{server}
		if server.IsLoopback() {
			if servers, err = behindStub(root, server); err != nil {
				return nil, err
			}
		}
		for _, addr := range servers {
			if upstream := netip.AddrPortFrom(addr, upstreamPort); !slices.Contains(upstreams, upstream) {
				upstreams = append(upstreams, upstream)
			}
		}
	}
	return upstreams, nil
}

// behindStub are the servers that one on loopback asks, itself if that is not known.
// What systemd-resolved asks is told of its own addresses alone: another resolver
// there, such as an unbound, may have zones that those servers do not know.
func behindStub(root string, stub netip.Addr) ([]netip.Addr, error) {
	file := networkManagerConf
	if isResolved(stub) {
		file = resolvedConf
	}
	behind, err := readResolvConf(root, file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	behind = slices.DeleteFunc(behind, func(addr netip.Addr) bool { return addr == stub || isResolved(addr) })
	if len(behind) == 0 {
		return []netip.Addr{stub}, nil
	}
	return behind, nil
}

// isResolved tells whether an address is one of those systemd-resolved listens on.
func isResolved(addr netip.Addr) bool {
	return addr == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || addr == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

// hostLinks reads the links of a host whose files are below another root.
type hostLinks struct{}

func (hostLinks) Lstat(name string) (os.FileInfo, error) { return os.Lstat(name) }

// Readlink has /var/run be /run, as it is on hosts: no container has their /var.
func (hostLinks) Readlink(name string) (string, error) {
	target, err := os.Readlink(name)
	if below, ok := strings.CutPrefix(target, "/var/run/"); ok {
		target = "/run/" + below
	}
	return target, err
}

// readResolvConf reads the servers in a file of the host whose files are below root.
// Links lead to what they lead to on that host, absolute ones too.
func readResolvConf(root, name string) (servers []netip.Addr, err error) {
	path, err := securejoin.SecureJoinVFS(root, name, hostLinks{})
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	text, err := io.ReadAll(io.LimitReader(file, resolvConfLimit))
	if err != nil {
		return nil, err
	}
	return parseResolvConf(string(text)), nil
}
