package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

// hcnStateVersion is the version of the record's form.
const hcnStateVersion = 1

// States of an attachment in the record.
const (
	hcnMaking   = "making"   // what an Attach began; nothing of it may stay
	hcnAttached = "attached" // complete
	hcnLeaving  = "leaving"  // to be removed until HCN has let go of all of it
)

// hcnState is the record of what is ours in HCN. It is a value: who changes it
// changes a copy, and takes that only if it could be written down.
type hcnState struct {
	Version     int             `json:"version"`
	Last        int             `json:"last"` // the highest number of an attachment so far
	Segments    []hcnSegment    `json:"segments,omitempty"`
	Attachments []hcnAttachment `json:"attachments,omitempty"`
}

// hcnSegment is a segment and the id of its HCN network, which exists or is
// about to.
type hcnSegment struct {
	Name    string         `json:"name"`
	ID      string         `json:"id"`
	Subnets []netip.Prefix `json:"subnets"`           // wanted
	Named   bool           `json:"named,omitempty"`   // the subnets are the segment's own, not those of the configuration
	Leaving bool           `json:"leaving,omitempty"` // to be removed until HCN has let go of it
}

// hcnAttachment is an attachment and the ids of what it is made of.
type hcnAttachment struct {
	Key          Key            `json:"key"`
	State        string         `json:"state"`
	Number       int            `json:"number"`
	Segment      string         `json:"segment"`
	Home         string         `json:"home"`              // the segment whose network it is on
	Network      string         `json:"network,omitempty"` // CNI's, as Spec.Network
	Addrs        []netip.Addr   `json:"addrs"`
	Subnets      []netip.Prefix `json:"subnets"` // of the HCN network it was attached to
	MAC          string         `json:"mac,omitempty"`
	DNS          DNS            `json:"dns,omitzero"`
	Endpoint     string         `json:"endpoint"`
	Namespace    string         `json:"namespace"`
	OwnNamespace bool           `json:"own_namespace,omitempty"` // ours to make and remove
}

// mac is the hardware address as HCN writes it, parsed.
func (r hcnAttachment) mac() net.HardwareAddr {
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return nil
	}
	return mac
}

func (s hcnState) attachment(keyID string) (_ hcnAttachment, index int, found bool) {
	index = slices.IndexFunc(s.Attachments, func(r hcnAttachment) bool { return r.Key.ID() == keyID })
	if index < 0 {
		return hcnAttachment{}, index, false
	}
	return s.Attachments[index], index, true
}

func (s hcnState) segment(name string) (_ hcnSegment, index int, found bool) {
	index = slices.IndexFunc(s.Segments, func(r hcnSegment) bool { return r.Name == name })
	if index < 0 {
		return hcnSegment{}, index, false
	}
	return s.Segments[index], index, true
}

// uses tells whether attachments, complete or not, are on the segment.
func (s hcnState) uses(segment string) bool {
	return slices.ContainsFunc(s.Attachments, func(r hcnAttachment) bool { return r.Segment == segment || r.Home == segment })
}

// unfinished tells whether something is in the record that has to go.
func (s hcnState) unfinished() bool {
	return slices.ContainsFunc(s.Segments, func(r hcnSegment) bool { return r.Leaving }) ||
		slices.ContainsFunc(s.Attachments, func(r hcnAttachment) bool { return r.State == hcnLeaving })
}

// withAttachment is the state with the attachment new or changed.
func (s hcnState) withAttachment(r hcnAttachment) hcnState {
	s.Attachments = slices.Clone(s.Attachments)
	if _, i, found := s.attachment(r.Key.ID()); found {
		s.Attachments[i] = r
	} else {
		s.Attachments = append(s.Attachments, r)
	}
	s.Last = max(s.Last, r.Number)
	return s
}

func (s hcnState) withoutAttachment(keyID string) hcnState {
	s.Attachments = slices.DeleteFunc(slices.Clone(s.Attachments), func(r hcnAttachment) bool { return r.Key.ID() == keyID })
	return s
}

// withSegment is the state with the segment new or changed.
func (s hcnState) withSegment(r hcnSegment) hcnState {
	s.Segments = slices.Clone(s.Segments)
	if _, i, found := s.segment(r.Name); found {
		s.Segments[i] = r
	} else {
		s.Segments = append(s.Segments, r)
	}
	return s
}

func (s hcnState) withoutSegment(name string) hcnState {
	s.Segments = slices.DeleteFunc(slices.Clone(s.Segments), func(r hcnSegment) bool { return r.Name == name })
	return s
}

// change writes a change of the record down and takes it over; on an error
// nothing has changed. The change may refuse.
func (a *hcnAttacher) change(edit func(hcnState) (hcnState, error)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	state, err := edit(a.state)
	if err != nil {
		return err
	}
	return a.writeLocked(state)
}

// put writes down an attachment, new or changed.
func (a *hcnAttacher) put(r hcnAttachment) error {
	return a.change(func(s hcnState) (hcnState, error) { return s.withAttachment(r), nil })
}

func (a *hcnAttacher) writeLocked(state hcnState) error {
	raw, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return fmt.Errorf("write record %s: %w", a.cfg.State, err)
	}
	if raw = append(raw, '\n'); bytes.Equal(raw, a.written) {
		return nil
	}
	a.written = nil
	if err := durable.Replace(a.cfg.State, bytes.NewReader(raw), 0o600); err != nil {
		return fmt.Errorf("write record %s: %w", a.cfg.State, err)
	}
	a.state, a.written = state, raw
	return nil
}

// readState reads the record, empty if there is none. One that cannot be
// understood is an error: without it, what is ours would be left behind.
func readState(path string) (hcnState, error) {
	state := hcnState{Version: hcnStateVersion}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil
	}
	if err != nil {
		return state, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return state, fmt.Errorf("read record %s: %w", path, err)
	}
	if state.Version != hcnStateVersion {
		return state, fmt.Errorf("read record %s: it has version %d, not %d", path, state.Version, hcnStateVersion)
	}
	return state, nil
}
