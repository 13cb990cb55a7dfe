package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Mode is how a service's segment is carried between nodes.
type Mode string

// The modes of a service. ModeAuto leaves the choice to the daemon.
const (
	ModeAuto      Mode = "auto"
	ModeShared    Mode = "shared"
	ModeDedicated Mode = "dedicated"
)

// Resolve returns the mode meant: ModeShared for ModeAuto and for none.
func (m Mode) Resolve() Mode {
	if m == ModeAuto || m == "" {
		return ModeShared
	}
	return m
}

// MarshalText writes the mode; none is ModeAuto.
func (m Mode) MarshalText() ([]byte, error) {
	if m == "" {
		m = ModeAuto
	}
	return []byte(m), nil
}

// UnmarshalText refuses what is no mode.
func (m *Mode) UnmarshalText(text []byte) error {
	switch mode := Mode(text); mode {
	case ModeAuto, ModeShared, ModeDedicated:
		*m = mode
		return nil
	}
	return errors.New("unknown overlay mode " + short(string(text)))
}

// Scope says which WireGuard device a peer belongs to: the cluster's, or the
// dedicated one of Service. A request without a scope, as older senders write
// it, means the cluster's.
type Scope struct {
	Service string // empty: the cluster's device
}

type scopeFields struct {
	Scope   string  `json:"scope"`
	Service *string `json:"service,omitempty"`
}

// MarshalJSON writes {"scope":"global"} or {"scope":"service","service":...}.
func (s Scope) MarshalJSON() ([]byte, error) {
	if s.Service == "" {
		return encode(scopeFields{Scope: "global"})
	}
	return encode(scopeFields{Scope: "service", Service: &s.Service})
}

// UnmarshalJSON refuses a service's scope without a service, which would
// otherwise mean the cluster's device.
func (s *Scope) UnmarshalJSON(raw []byte) error {
	var f scopeFields
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	switch {
	case f.Scope == "global":
		*s = Scope{}
	case f.Scope == "service" && f.Service != nil && *f.Service != "":
		*s = Scope{Service: *f.Service}
	default:
		return errors.New("unknown scope " + short(f.Scope))
	}
	return nil
}

// AllowedIPs is a list of prefixes. On the wire it is one string, separated by
// commas.
type AllowedIPs []netip.Prefix

// MarshalText joins the prefixes by commas.
func (a AllowedIPs) MarshalText() ([]byte, error) {
	var text []byte
	for i, prefix := range a {
		if i > 0 {
			text = append(text, ',')
		}
		text = prefix.AppendTo(text)
	}
	return text, nil
}

// UnmarshalText reads what MarshalText writes, with blanks around the commas
// allowed. The empty string is an empty list.
func (a *AllowedIPs) UnmarshalText(text []byte) error {
	*a = nil
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil
	}
	for part := range strings.SplitSeq(string(text), ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return fmt.Errorf("invalid CIDR %s", short(part))
		}
		*a = append(*a, prefix)
	}
	return nil
}

// PeerSpec is a WireGuard peer as a request or a guest's configuration tells
// it.
type PeerSpec struct {
	PublicKey               string     `json:"public_key"` // base64
	Endpoint                string     `json:"endpoint"`   // host:port; the host may be a name
	AllowedIPs              AllowedIPs `json:"allowed_ips"`
	PersistentKeepaliveSecs uint64     `json:"persistent_keepalive_secs"` // 0: off

	// What follows is our addition, for the cluster's device alone: what the peer's own daemon tells of ways through
	// NATs. A peer without either is reached at Endpoint, or has to begin.
	Candidates []string `json:"candidates,omitempty"` // further addresses of the peer, each as NATCandidate.String gives it
	Relay      string   `json:"relay,omitempty"`      // how its relay is reached, as NATRelay.Offer
}

// short returns the start of foreign text, quoted, for an error message.
func short(s string) string {
	const limit = 64
	if len(s) > limit {
		return fmt.Sprintf("%q...", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
