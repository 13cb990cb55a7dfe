package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

const (
	// DefaultZone is the zone of the overlay's names where the configuration has none.
	DefaultZone = "overlay.local"
	// DNSPort is the port of DNS.
	DNSPort = 53
	// HighDNSPort is a port that one may listen on, or forward to, without privileges.
	HighDNSPort = 15353
)

// How long others may keep what the zone says.
const (
	podTTL      = 5 * time.Second
	nodeTTL     = 30 * time.Second
	negativeTTL = 5 * time.Second
)

// The sources of names.
const (
	sourceAttachments = "attachments"
	sourceGuests      = "guests"
	sourceNodes       = "nodes"
	sourcePods        = "pods"
	sourceRegistered  = "registered"
)

// DNSConfig says how the names of the overlay are served.
type DNSConfig struct {
	// Enabled has this node listen for questions. Without, names are known and not served.
	Enabled bool
	// Zone is what relative names are in; empty is DefaultZone.
	Zone string
	// Ports are those that are listened on; none are DNSPort and HighDNSPort.
	Ports []int
	// Upstreams are asked for what is not in the zone; none takes the host's.
	Upstreams []netip.AddrPort
	// RateLimit is how many questions a client may ask in a second, 0 without limit.
	RateLimit int
	// HostRoot is where the host's /etc and /run are, or the folders of dns.HostFolders
	// alone. While its resolv.conf cannot be read, that of this container is. Empty is "/".
	HostRoot string
	// Pods says that SetPods will be called. The names of services are the pods' then, which alone know who is
	// ready, and not those of this node's sandboxes.
	Pods bool
}

// hostRoots are where the host's files may be, best first.
func (c DNSConfig) hostRoots() []string {
	if c.HostRoot == "" || c.HostRoot == "/" {
		return []string{"/"}
	}
	return []string{c.HostRoot, "/"}
}

// naming is what this node knows of names, and who tells others. Whatever
// changes, a source's whole set is told again, or all of one owner: nothing
// hangs on what was told before. Safe for concurrent use.
type naming struct {
	cfg      DNSConfig
	self     string // this node's name
	log      *slog.Logger
	zone     *dns.Zone
	server   *dns.Server
	forward  *dns.Forwarder
	lost     lostNodes
	problems nameProblems
	listens  atomic.Pointer[[]netip.AddrPort] // what the server was given last

	setPods sync.Mutex // serializes SetPods; taken before mu

	told map[string]map[string][]dns.Entry // what the zone has of nodes and guests, by source; guarded by Dataplane.setNodes

	mu        sync.Mutex            // guards what follows; held while the zone is told: the latest comes last
	places    places                // which node has which addresses; written with Dataplane.setNodes held, too
	sandboxes map[string]sandbox    // those of this node by key ID
	at        map[netip.Addr]string // their key IDs by address
	adopted   bool                  // those of an earlier run are among them
	pods      podTable
}

func newNaming(node string, cfg DNSConfig, log *slog.Logger) (*naming, error) {
	cfg.Zone = cmp.Or(cfg.Zone, DefaultZone)
	if len(cfg.Ports) == 0 {
		cfg.Ports = []int{DNSPort, HighDNSPort}
	}
	n := &naming{
		cfg: cfg, self: node, log: log,
		sandboxes: map[string]sandbox{}, at: map[netip.Addr]string{}, told: map[string]map[string][]dns.Entry{},
	}
	var err error
	if n.zone, err = dns.NewZone(dns.ZoneConfig{Name: cfg.Zone, NegativeTTL: negativeTTL, Sources: n.sources()}); err != nil {
		return nil, fmt.Errorf("make zone %s: %w", shorten(cfg.Zone), err)
	}
	n.forward = dns.NewForwarder(dns.ForwarderConfig{Upstreams: cfg.Upstreams, Roots: cfg.hostRoots(), Own: n.own, Log: log})
	n.server = dns.NewServer(dns.ServerConfig{Zone: n.zone, Forward: n.forward, RateLimit: cfg.RateLimit, Log: log})
	return n, nil
}

// sources are those that the zone waits for, in order.
func (n *naming) sources() []string {
	all := []string{sourceAttachments, sourceGuests, sourceNodes, sourceRegistered}
	if n.cfg.Pods {
		all = append(all, sourcePods)
	}
	return all
}

// run serves until ctx ends.
func (n *naming) run(ctx context.Context, parts *parts) error {
	if !n.cfg.Enabled {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.forward.Run(ctx) })
	group.Go(func() error { return n.server.Run(ctx) })
	group.Go(func() error { n.watchLost(ctx, parts.deviceAddresses()); return nil })
	return group.Wait()
}

// tell gives the zone all that a source has, by owner. Whoever tells of a source
// holds what its word follows from: n.mu, but for nodes and guests.
func (n *naming) tell(source string, owners map[string][]dns.Entry) {
	n.note(problemSource{source, ""}, refused(n.zone.SetSource(source, owners)))
}

// tellOne gives the zone all that one owner has, likewise.
func (n *naming) tellOne(source, owner string, entries []dns.Entry) {
	n.note(problemSource{source, owner}, refused(n.zone.Set(source, owner, entries...)))
}

// note notes what has no name now, and logs what is new of it.
func (n *naming) note(of problemSource, now problems) {
	for _, text := range n.problems.set(of, now) {
		n.log.Warn("name left out", "op", "names", "reason", text)
	}
}

// errName means that a text is not part of a name.
var errName = errors.New("it is no name")

// maxLabel is the longest part of a name between dots, in bytes (RFC 1035, section 2.3.4).
const maxLabel = 63

// serverName is the name of the zone's own server, which nobody else gets.
const serverName = "ns"

// label is what a text is as one part of a name, in lower case.
func label(text string) (string, error) {
	switch {
	case text == "":
		return "", fmt.Errorf("a part between dots is empty: %w", errName)
	case len(text) > maxLabel:
		return "", fmt.Errorf("a part has %d bytes, of at most %d: %w", len(text), maxLabel, errName)
	}
	for _, c := range text {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return "", fmt.Errorf("%q is no letter, digit or hyphen: %w", c, errName)
		}
	}
	return strings.ToLower(text), nil
}

// labels is what a text is as several parts of a name, in lower case.
func labels(text string) (string, error) {
	for part := range strings.SplitSeq(text, ".") {
		if _, err := label(part); err != nil {
			return "", err
		}
	}
	return strings.ToLower(text), nil
}

// inZone is a name as it is compared and told: relative to the zone, or with a
// dot at its end if it is not in it.
func (n *naming) inZone(name string) (string, error) {
	zone := n.zone.Name()
	plain, absolute := strings.CutSuffix(name, ".")
	plain, err := labels(plain)
	if err != nil {
		return "", err
	}
	full := plain + "."
	if !absolute && full != zone && !strings.HasSuffix(full, "."+zone) {
		full += zone
	}
	if full == zone {
		return "", fmt.Errorf("it is the zone itself: %w", errName)
	}
	if len(full)-1 > maxDNSName {
		return "", fmt.Errorf("it has %d bytes in all, of at most %d: %w", len(full)-1, maxDNSName, errName)
	}
	relative, is := strings.CutSuffix(full, "."+zone)
	if is && relative == serverName {
		return "", dns.ErrReserved
	}
	if is {
		return relative, nil
	}
	return full, nil
}

// under is the name of something in a part of the zone, as NAME.node.
func (n *naming) under(name, part string) (string, error) {
	if name == "" || strings.HasSuffix(name, ".") {
		return "", fmt.Errorf("it is empty or ends with a dot: %w", errName)
	}
	return n.inZone(name + "." + part + "." + n.zone.Name())
}
