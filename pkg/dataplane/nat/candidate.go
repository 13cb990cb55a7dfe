package nat

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	// MaxCandidates bounds a node's candidates. Each costs every peer checks.
	MaxCandidates = 16
	// maxCandidatesText bounds the text of a node's candidates in bytes.
	maxCandidatesText = 1024
)

// Kind says how a candidate was found.
type Kind string

// The kinds of candidates, best first.
const (
	// Host is an address of the node itself.
	Host Kind = "host"
	// Reflexive is what a STUN server or a peer saw packets of the node come from.
	Reflexive Kind = "server_reflexive"
	// Relayed is an address of a relay that passes packets on to the node.
	Relayed Kind = "relay"
)

// Priority tells kinds apart: higher is better. It is 0 for a kind that is none.
func (k Kind) Priority() uint32 {
	switch k {
	case Host:
		return 100
	case Reflexive:
		return 50
	case Relayed:
		return 10
	}
	return 0
}

// Candidate is an address at which a node may be reached. Its text is
// KIND/ADDRESS:PORT, such as host/192.0.2.1:51820.
type Candidate struct {
	// Kind says how it was found.
	Kind Kind
	// Addr is the address and UDP port.
	Addr netip.AddrPort
}

// ParseCandidate reads one candidate. An IPv4 address in IPv6's clothes is
// unmapped; a kind that is none, and an address at which no other node can be, is
// an error.
func ParseCandidate(text string) (Candidate, error) {
	kind, addr, found := strings.Cut(text, "/")
	if !found {
		return Candidate{}, fmt.Errorf("candidate %q: want KIND/ADDRESS:PORT", text)
	}
	parsed, err := netip.ParseAddrPort(addr)
	if err != nil {
		return Candidate{}, fmt.Errorf("candidate %q: want KIND/ADDRESS:PORT: %w", text, err)
	}
	c := Candidate{Kind: Kind(kind), Addr: netip.AddrPortFrom(parsed.Addr().Unmap(), parsed.Port())}
	if err := c.Validate(); err != nil {
		return Candidate{}, err
	}
	return c, nil
}

// Validate returns an error that names c unless its kind is one, and another
// node can be at its address.
func (c Candidate) Validate() error {
	if c.Kind.Priority() == 0 {
		return fmt.Errorf("candidate %q: kind is none of %s, %s, %s", c, Host, Reflexive, Relayed)
	}
	if why := unreachable(c.Addr); why != "" {
		return fmt.Errorf("candidate %q: no other node can be at %s", c, why)
	}
	return nil
}

// unreachable says why no other node can be at addr, or nothing.
func unreachable(addr netip.AddrPort) string {
	a := addr.Addr()
	switch {
	case !a.IsValid():
		return "no address"
	case a.Is4In6():
		return "an IPv4 address in IPv6's clothes"
	case a.Zone() != "":
		return "an address with a zone"
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a.Is4() && a.As4()[0] == 0:
		return "an address of \"this network\""
	case a.Is4() && a.As4()[0] >= 240:
		return "a reserved address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case addr.Port() == 0:
		return "port 0"
	}
	return ""
}

// String returns the text that [ParseCandidate] reads.
func (c Candidate) String() string { return string(c.Kind) + "/" + c.Addr.String() }

// MarshalText returns the text that [ParseCandidate] reads, or an error if it
// would refuse it.
func (c Candidate) MarshalText() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return []byte(c.String()), nil
}

// UnmarshalText is [ParseCandidate].
func (c *Candidate) UnmarshalText(text []byte) error {
	parsed, err := ParseCandidate(string(text))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

// Sort puts the best first: by priority, then by address.
func Sort(candidates []Candidate) {
	slices.SortFunc(candidates, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(b.Kind.Priority(), a.Kind.Priority()), a.Addr.Compare(b.Addr), cmp.Compare(a.Kind, b.Kind))
	})
}

// ParseCandidates reads a list separated by commas, and returns it sorted and
// without duplicates. An empty text is an empty list. What is wrong with single
// candidates is in the error, and the good ones are returned beside it; a list of
// more than [MaxCandidates] or 1,024 bytes is refused whole.
func ParseCandidates(text string) ([]Candidate, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxCandidatesText {
		return nil, fmt.Errorf("candidates: %d bytes, more than %d", len(text), maxCandidatesText)
	}
	if n := strings.Count(text, ",") + 1; n > MaxCandidates {
		return nil, fmt.Errorf("candidates: a list of %d, more than %d", n, MaxCandidates)
	}
	var candidates []Candidate
	var errs []error
	for one := range strings.SplitSeq(text, ",") {
		c, err := ParseCandidate(one)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		candidates = append(candidates, c)
	}
	Sort(candidates)
	return slices.Compact(candidates), errors.Join(errs...)
}

// FormatCandidates returns the text of a list that [ParseCandidates] reads
// without error: sorted, without duplicates and without candidates that are not
// valid. If there are too many, the kind of which there are most loses its last,
// so that a node with many addresses still tells of its relay.
func FormatCandidates(candidates []Candidate) string {
	best := slices.DeleteFunc(slices.Clone(candidates), func(c Candidate) bool { return c.Validate() != nil })
	Sort(best)
	best = slices.Compact(best)
	for {
		text := joinCandidates(best)
		if len(best) <= MaxCandidates && len(text) <= maxCandidatesText {
			return text
		}
		best = dropOne(best)
	}
}

func joinCandidates(candidates []Candidate) string {
	texts := make([]string, len(candidates))
	for i, c := range candidates {
		texts[i] = c.String()
	}
	return strings.Join(texts, ",")
}

// dropOne removes the last of the kind of which there are most; of kinds with
// as many, of the better one.
func dropOne(sorted []Candidate) []Candidate {
	last, most := 0, 0
	for first := 0; first < len(sorted); {
		end := first
		for end < len(sorted) && sorted[end].Kind == sorted[first].Kind {
			end++
		}
		if end-first > most {
			last, most = end-1, end-first
		}
		first = end
	}
	return slices.Delete(sorted, last, last+1)
}
