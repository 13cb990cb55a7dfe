package shim

import (
	"context"
	"net/netip"
)

// DNSSettings is what the resolver of a sandbox should be told, as in
// resolv.conf(5).
type DNSSettings struct {
	Nameservers []netip.Addr `json:"nameservers,omitempty"` // at port 53
	Domain      string       `json:"domain,omitempty"`      // of the sandbox
	Search      []string     `json:"search,omitempty"`      // for short names, in this order
}

// DNSStatus is what a daemon tells of its DNS server.
type DNSStatus struct {
	Enabled   bool             `json:"enabled"`
	Zone      string           `json:"zone,omitempty"`      // without a dot at its end
	Listeners []DNSListener    `json:"listeners,omitempty"` // where it is to listen, by UDP and TCP
	Upstreams []netip.AddrPort `json:"upstreams,omitempty"` // who is asked for other names, in this order; none: nobody
	Names     int              `json:"names"`
	Waiting   []string         `json:"waiting,omitempty"`  // sources of names that have told nothing yet: until then a name that is not found may exist
	Down      []string         `json:"down,omitempty"`     // nodes whose addresses are left out of answers that have others
	Problems  []string         `json:"problems,omitempty"` // what has no name, and why
}

// DNSListener is an address of a DNS server.
type DNSListener struct {
	Address netip.AddrPort `json:"address"`
	Problem string         `json:"problem,omitempty"` // why it does not listen there
}

// Servers returns where the server listens.
func (s *DNSStatus) Servers() []netip.AddrPort {
	var servers []netip.AddrPort
	for _, listener := range s.Listeners {
		if listener.Problem == "" {
			servers = append(servers, listener.Address)
		}
	}
	return servers
}

// DNSName is a name that a daemon serves.
type DNSName struct {
	Name      string       `json:"name"` // absolute, with a dot at its end
	Addresses []netip.Addr `json:"addresses"`
	Down      []netip.Addr `json:"down,omitempty"` // those of Addresses that are left out of answers, since their node does not answer
	TTLSecs   uint32       `json:"ttl_secs"`
	Sources   []string     `json:"sources,omitempty"` // where the name comes from
}

// ListDNS asks for the names that the daemon serves, in their order, as many as
// it likes to tell at once. It is our addition. Answer: *DNSNames.
type ListDNS struct {
	After string `json:"after,omitempty"` // those behind this name; empty: from the first
}

// DNSNames answers ListDNS.
type DNSNames struct {
	Names []DNSName `json:"names"`
	More  bool      `json:"more,omitempty"` // there are more behind the last
}

// Op implements Request.
func (*ListDNS) Op() string { return "list_dns" }

// Result implements Response.
func (*DNSNames) Result() string { return "dns_names" }

// DNSNames returns all names that the daemon serves, in their order. What comes
// or goes meanwhile may be missing. A daemon without DNS answers
// CodeUnsupported, one whose DNS is off CodeUnavailable.
func (c *Client) DNSNames(ctx context.Context) ([]DNSName, error) {
	all, next := []DNSName{}, &ListDNS{}
	for {
		part, err := expect[*DNSNames](c.Call(ctx, next))
		if err != nil {
			return nil, err
		}
		all = append(all, part.Names...)
		if !part.More || len(part.Names) == 0 {
			return all, nil
		}
		next = &ListDNS{After: part.Names[len(part.Names)-1].Name}
	}
}
