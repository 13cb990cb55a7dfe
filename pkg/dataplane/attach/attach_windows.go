package attach

import "context"

// Attacher attaches sandboxes to the segments of one host, through the Host
// Compute Network service. One host has one Attacher at a time. Its methods are
// those of Linux.
type Attacher struct{ *hcnAttacher }

// New prepares an Attacher and changes nothing.
func New(cfg Config) (*Attacher, error) {
	a, err := newHCN(hcsshim{}, cfg)
	if err != nil {
		return nil, err
	}
	return &Attacher{a}, nil
}

// HCNObjects counts the HCN networks and endpoints of this host that have names of
// ours. It needs no record and changes nothing.
func HCNObjects(ctx context.Context) (networks, endpoints int, err error) {
	return hcnObjects(ctx, hcsshim{})
}
