//go:build linux

package natlab

// Kind is what a router does to one IP family.
type Kind int

// The zero value is Missing.
const (
	Missing           Kind = iota // neither the router nor its hosts have the family
	Routed                        // hosts have public addresses, and everything passes
	Firewall                      // hosts have public addresses, and only answers come in
	FullCone                      // one public port for a host's port; whoever knows it comes in
	AddressRestricted             // the same, for addresses that the host has sent to
	PortRestricted                // the same, for addresses and ports that the host has sent to
	Symmetric                     // a random public port for each destination
)

// String returns the kind's name, in lower case.
func (k Kind) String() string {
	switch k {
	case Missing:
		return "missing"
	case Routed:
		return "routed"
	case Firewall:
		return "firewall"
	case FullCone:
		return "full cone"
	case AddressRestricted:
		return "address restricted"
	case PortRestricted:
		return "port restricted"
	case Symmetric:
		return "symmetric"
	}
	return "unknown"
}

func (k Kind) translates() bool { return k >= FullCone }
