package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// A Firewall holds our rules in Windows' firewall to what its caller wants: they
// let in WireGuard's ports and other nodes' echo requests, which Windows refuses
// otherwise. Nothing here is in a packet's way: on Windows, masquerading and what
// pods may send are the business of their HCN network, and the WireGuard device
// keeps routes that refuse behind it. Its methods may be called from many
// goroutines.
type Firewall struct {
	group string
	log   *slog.Logger
	mu    sync.Mutex // held by whoever works on the rules
}

// New returns a Firewall that has touched nothing yet. Config.Table names the
// group that our rules are in, and begins their names; Config.NetNS is Linux's.
func New(c Config) (*Firewall, error) {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Firewall{group: c.Table, log: c.Log}, nil
}

// Apply makes our rules what r says, each in place, and repairs what strangers did
// to them. It writes only differences, and returns whether there were any. A rule
// with a name of ours that is of another group is an error, and stays. Services are
// errors.ErrUnsupported; of the rest, Ports, Cluster and Own count.
func (f *Firewall) Apply(ctx context.Context, r Rules) (changed bool, err error) {
	err = r.validate()
	if err == nil && len(r.Services) > 0 {
		err = fmt.Errorf("services on Windows: %w", errors.ErrUnsupported)
	}
	if err == nil {
		changed, err = f.reconcile(ctx, wantedHostRules(f.group, r))
	}
	if err != nil {
		return changed, fmt.Errorf("apply firewall rules: %w", err)
	}
	return changed, nil
}

// Teardown removes our rules. None to remove is fine.
func (f *Firewall) Teardown(ctx context.Context) error {
	if _, err := f.reconcile(ctx, nil); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	return nil
}

func (f *Firewall) reconcile(ctx context.Context, wanted []hostRule) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	err = withPolicy(f.group, func(store hostRules) error {
		changed, err = reconcileHostRules(store, hostRuleNames(f.group), wanted)
		return err
	})
	return changed, err
}

// Pin does nothing: an HCN network's switch has the pods' ports.
func (*Firewall) Pin(context.Context, Pin) error { return nil }

// Unpin does nothing, like Pin.
func (*Firewall) Unpin(context.Context, int) error { return nil }

// Counters returns none: our rules drop nothing.
func (*Firewall) Counters(context.Context) (Counters, error) { return Counters{}, nil }

// Close does nothing. Our rules stay.
func (*Firewall) Close() error { return nil }
