package dataplane

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

const (
	// DefaultZone is the zone of the overlay's names where the configuration has none.
	DefaultZone = "overlay.local"
	// DNSPort is the port of DNS. HighDNSPort is for those who may not use it.
	DNSPort, HighDNSPort = 53, 15353
)

// How long others may keep what the zone says.
const (
	podTTL      = 5 * time.Second
	nodeTTL     = 30 * time.Second
	negativeTTL = 5 * time.Second
)

// The sources of names.
const (
	sourceNodes       = "nodes"
	sourceGuests      = "guests"
	sourceRegistered  = "registered"
	sourceAttachments = "attachments"
	sourcePods        = "pods"
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
	// ResolvRoot is where the host's files are, for tests; empty is "/".
	ResolvRoot string
	// Pods says that SetPods will be called. The names of services are the pods' then, which alone know who is
	// ready, and not those of this node's sandboxes.
	Pods bool
}

// ServicePod is a pod that belongs to a service, on any node.
type ServicePod struct {
	// Namespace, Name and Service are the pod's, in Kubernetes' words, Node where it runs.
	Namespace, Name, Service, Node string
	// UID tells it from another pod of the same name; it may be empty.
	UID string
	// Addrs are its addresses; none once it has ended, although Kubernetes may still tell of some.
	Addrs []netip.Addr
	// Ready says that the service's name may lead to it.
	Ready bool
}

// NodeGuest is a guest of any node.
type NodeGuest struct {
	// Node is the one whose guest it is, Name is what that node calls it.
	Node, Name string
	// Addrs are its addresses, of its node's slices.
	Addrs []netip.Addr
}

// naming is what this node knows of names, and who tells others. Safe for
// concurrent use.
type naming struct {
	cfg     DNSConfig
	log     *slog.Logger
	zone    *dns.Zone
	server  *dns.Server
	forward *dns.Forwarder

	mu   sync.Mutex // guards what follows; held while the zone is told: the latest comes last
	pods []ServicePod
	told map[string]bool // the sources that have
}

func newNaming(cfg DNSConfig, log *slog.Logger) (*naming, error) {
	cfg.Zone = cmp.Or(cfg.Zone, DefaultZone)
	if len(cfg.Ports) == 0 {
		cfg.Ports = []int{DNSPort, HighDNSPort}
	}
	n := &naming{cfg: cfg, log: log, told: map[string]bool{}}
	var err error
	if n.zone, err = dns.NewZone(dns.ZoneConfig{Name: cfg.Zone, NegativeTTL: negativeTTL, Sources: n.sources()}); err != nil {
		return nil, fmt.Errorf("make zone %s: %w", shorten(cfg.Zone), err)
	}
	n.forward = dns.NewForwarder(dns.ForwarderConfig{Upstreams: cfg.Upstreams, Root: cfg.ResolvRoot, Log: log})
	n.server = dns.NewServer(dns.ServerConfig{Zone: n.zone, Forward: n.forward, RateLimit: cfg.RateLimit, Log: log})
	return n, nil
}

// sources are those that the zone waits for.
func (n *naming) sources() []string {
	all := []string{sourceAttachments, sourceGuests, sourceNodes, sourceRegistered}
	if n.cfg.Pods {
		all = append(all, sourcePods)
	}
	return all
}

// SetPods replaces all pods that belong to services, those of other nodes
// included. Only addresses in the slices of a pod's node are taken. Call it only
// with Config.DNS.Pods.
func (d *Dataplane) SetPods(pods []ServicePod) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods = slices.Clone(pods)
	n.told[sourcePods] = true
}

// LocalGuests are the guests of this node, as the others have to know them.
func (d *Dataplane) LocalGuests() []NodeGuest {
	var local []NodeGuest
	for _, record := range d.guests.list() {
		local = append(local, NodeGuest{Node: d.cfg.Node, Name: record.Name, Addrs: slices.Clone(record.Addresses)})
	}
	return local
}

// guestsChanged tells whoever passes LocalGuests on.
func (d *Dataplane) guestsChanged() {
	if d.cfg.OnGuests != nil {
		d.cfg.OnGuests()
	}
}
