package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

// IPAllocStats counts the addresses of a node.
type IPAllocStats struct {
	Total     uint64       // that there are to give; saturates, as it does with most IPv6 pools
	Allocated uint64       // in use
	Resting   uint64       // freed, not given out again yet
	Pools     []PoolStatus // the same, one by one
}

// IPAllocStats asks how many addresses the node has and has given. The error is
// errors.ErrUnsupported if the daemon does not count them.
func (m *OverlayManager) IPAllocStats(ctx context.Context) (IPAllocStats, error) {
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return IPAllocStats{}, err
	}
	if len(snapshot.Pools) == 0 {
		return IPAllocStats{}, fmt.Errorf("count addresses: overlayd tells of no pools: %w", errors.ErrUnsupported)
	}
	stats := IPAllocStats{Pools: snapshot.Pools}
	for _, pool := range snapshot.Pools {
		if stats.Total += pool.Capacity; stats.Total < pool.Capacity {
			stats.Total = math.MaxUint64
		}
		stats.Allocated += uint64(max(pool.Used, 0))
		stats.Resting += uint64(max(pool.Resting, 0))
	}
	return stats, nil
}

// savedIPAM is the content of the file of PersistIPAMState.
type savedIPAM struct {
	Version     int                `json:"version"`
	Node        string             `json:"node,omitempty"`
	Pools       []PoolStatus       `json:"pools"`
	Attachments []AttachmentStatus `json:"attachments"`
}

const (
	ipamFile    = "overlay-ipam.json"
	ipamVersion = 1
)

// PersistIPAMState writes down which addresses the daemon's sandboxes hold now,
// in the file overlay-ipam.json of OverlayOptions.DataDir: whole or not at all,
// and only readable for this user. Neither the daemon nor sandboxes need the
// file, since the kernel keeps what is attached. It is for RestoreIPAMState.
func (m *OverlayManager) PersistIPAMState(ctx context.Context) error {
	if err := m.persistIPAM(ctx); err != nil {
		return fmt.Errorf("write down addresses: %w", err)
	}
	return nil
}

func (m *OverlayManager) persistIPAM(ctx context.Context) error {
	if m.opt.DataDir == "" {
		return errNoDataDir
	}
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return err
	}
	data, err := encode(savedIPAM{
		Version: ipamVersion, Node: snapshot.Node, Pools: snapshot.Pools, Attachments: snapshot.Attachments,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.opt.DataDir, 0o700); err != nil {
		return err
	}
	return durable.Replace(filepath.Join(m.opt.DataDir, ipamFile), bytes.NewReader(data), 0o600)
}

var errNoDataDir = errors.New("option DataDir: no folder is configured")

// RestoreIPAMState compares the addresses that PersistIPAMState wrote down with
// those that the daemon's sandboxes hold now. It returns nil if all are held by
// the sandbox that held them then, and *AddressesLostError if not; addresses
// given since are fine. It changes nothing: the addresses of a sandbox that
// lives are held by the kernel, and those of one that is gone are free rightly.
// If nothing was written down the error is fs.ErrNotExist.
func (m *OverlayManager) RestoreIPAMState(ctx context.Context) error {
	if err := m.restoreIPAM(ctx); err != nil {
		return fmt.Errorf("compare addresses with those written down: %w", err)
	}
	return nil
}

func (m *OverlayManager) restoreIPAM(ctx context.Context) error {
	if m.opt.DataDir == "" {
		return errNoDataDir
	}
	saved, err := readIPAM(filepath.Join(m.opt.DataDir, ipamFile))
	if err != nil {
		return err
	}
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return err
	}
	if lost := lostAddresses(saved.Attachments, snapshot.Attachments); len(lost) > 0 {
		return &AddressesLostError{Lost: lost}
	}
	return nil
}

// AddressesLostError tells which addresses are not held any more as they were
// when PersistIPAMState wrote them down.
type AddressesLostError struct {
	Lost []LostAddress // in the order of addresses
}

// LostAddress is an address that changed hands.
type LostAddress struct {
	IP  netip.Addr
	Was string // the sandbox that held it: container ID and interface, or the hash of both
	Now string // the one that holds it now; empty: none
}

// Error names the first few.
func (e *AddressesLostError) Error() string {
	const most = 8
	named := make([]string, 0, most+1)
	for _, lost := range e.Lost[:min(len(e.Lost), most)] {
		text := fmt.Sprintf("%s of %s", lost.IP, lost.Was)
		if lost.Now != "" {
			text += " (now of " + lost.Now + ")"
		}
		named = append(named, text)
	}
	if rest := len(e.Lost) - most; rest > 0 {
		named = append(named, fmt.Sprintf("and %d more", rest))
	}
	return "held no longer: " + strings.Join(named, ", ")
}

// lostAddresses returns what was held before and is held by nobody or another
// now.
func lostAddresses(before, now []AttachmentStatus) []LostAddress {
	holders := make(map[netip.Addr]string)
	for _, attachment := range now {
		for _, addr := range attachment.Addresses {
			holders[addr] = attachment.name()
		}
	}
	var lost []LostAddress
	for _, attachment := range before {
		for _, addr := range attachment.Addresses {
			if holder := holders[addr]; holder != attachment.name() {
				lost = append(lost, LostAddress{IP: addr, Was: attachment.name(), Now: holder})
			}
		}
	}
	slices.SortFunc(lost, func(a, b LostAddress) int { return a.IP.Compare(b.IP) })
	return lost
}

// name returns the attachment's key for people and for comparison.
func (a AttachmentStatus) name() string {
	if a.ContainerID == "" {
		return a.Key
	}
	return a.ContainerID + "/" + a.IfName
}

// readIPAM reads what PersistIPAMState wrote. Anything else is an error that
// names the file, never an empty state.
func readIPAM(path string) (savedIPAM, error) {
	file, err := os.Open(path)
	if err != nil {
		return savedIPAM{}, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, MaxFrame+1))
	if err != nil {
		return savedIPAM{}, err
	}
	saved, err := parseIPAM(data)
	if err != nil {
		return savedIPAM{}, fmt.Errorf("%s: %w", path, err)
	}
	return saved, nil
}

func parseIPAM(data []byte) (savedIPAM, error) {
	if len(data) > MaxFrame {
		return savedIPAM{}, errTooLarge
	}
	var saved savedIPAM
	if err := json.Unmarshal(data, &saved); err != nil {
		return savedIPAM{}, err
	}
	if saved.Version != ipamVersion {
		return savedIPAM{}, fmt.Errorf("version %d is not %d", saved.Version, ipamVersion)
	}
	for _, attachment := range saved.Attachments {
		if attachment.name() == "" || slices.Contains(attachment.Addresses, netip.Addr{}) {
			return savedIPAM{}, errors.New("an attachment without key or address")
		}
	}
	return saved, nil
}
