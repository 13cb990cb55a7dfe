package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// A Firewall holds our rules in Windows' firewall, and our NATs, to what its caller
// wants. The rules let in WireGuard's ports, other nodes' echo requests and questions
// for names, which Windows refuses otherwise; the NATs hide sandboxes behind the
// host's address outside of the cluster. What pods may send is not looked at on
// Windows, and the WireGuard device keeps routes that refuse behind it. Its methods
// may be called from many goroutines.
type Firewall struct {
	group string
	log   *slog.Logger
	turn  boundedTurn // of whoever works on rules and NATs

	mu   sync.Mutex        // guards the next field
	told map[string]string // what is wrong, by its subject
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
	return &Firewall{group: c.Table, log: c.Log, turn: newBoundedTurn(), told: map[string]string{}}, nil
}

// Apply makes our rules what r says and repairs what strangers did to them: in
// place, unless they gave a rule another protocol or what none of ours has; it is
// removed and added then. It writes only differences, and returns whether there were
// any. A rule with a name of ours that is of another group is an error, and stays.
// Services are errors.ErrUnsupported; of the rest, Ports, NamePorts, Cluster, Own,
// Masquerade and Subnets count. An error about a rule costs neither other rules nor
// NATs. A NAT that cannot be made is logged and no error, since without it pods still
// reach the cluster; so is a policy under which the rules let nothing in. It waits
// for Windows 30 s at most, once for rules and once for NATs.
func (f *Firewall) Apply(ctx context.Context, r Rules) (changed bool, err error) {
	if err := checkHostRules(r); err != nil {
		return false, fmt.Errorf("apply firewall rules: %w", err)
	}
	changed, err = f.reconcile(ctx, wantedHostRules(f.group, r))
	if err != nil {
		err = fmt.Errorf("apply firewall rules: %w", err)
	}
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return changed, err // a call that hangs has the turn
	}
	translated, untranslated := f.masquerade(ctx, r)
	why := ""
	if untranslated != nil {
		why = untranslated.Error()
	}
	if f.isNews("NATs", why) {
		f.log.Warn("what sandboxes send out of the cluster is not translated", "op", "firewall", "err", why)
	}
	return changed || translated, err
}

// masquerade makes our NATs what r says. Without a way out at the moment they stay
// as they are.
func (f *Firewall) masquerade(ctx context.Context, r Rules) (changed bool, err error) {
	ways, err := defaultWays()
	if err != nil {
		return false, err
	}
	external, found := externalPrefix(ways)
	if r.Masquerade && !found {
		return false, nil
	}
	return bounded(ctx, f.turn, func() (changed bool, err error) {
		err = withNATs(f.group, func(store hostNATs) error {
			changed, err = reconcileNATs(store, wantedNATs(f.group, r, external))
			return err
		})
		return changed, err
	})
}

// isNews tells whether something is wrong with a subject that was not before, or
// for another reason. Without a reason all is well.
func (f *Firewall) isNews(subject, why string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.told[subject]
	f.told[subject] = why
	return why != "" && why != before
}

// Teardown removes our rules and NATs. None to remove is fine.
func (f *Firewall) Teardown(ctx context.Context) error {
	if _, err := f.reconcile(ctx, nil); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	if _, err := f.masquerade(ctx, Rules{}); err != nil {
		return fmt.Errorf("remove NATs: %w", err)
	}
	return nil
}

func (f *Firewall) reconcile(ctx context.Context, wanted []hostRule) (changed bool, err error) {
	return bounded(ctx, f.turn, func() (changed bool, err error) {
		err = withPolicy(f.group, func(store policy) error {
			if why := store.withoutEffect(); len(wanted) > 0 && f.isNews("rules", why) {
				f.log.Warn("rules of the firewall may let nothing in", "op", "firewall", "err", why)
			}
			changed, err = reconcileHostRules(store, hostRuleNames(f.group), wanted)
			return err
		})
		return changed, err
	})
}

// Count counts our rules in Windows' firewall, and our NATs.
func (f *Firewall) Count(ctx context.Context) (rules, translations int, err error) {
	rules, err = bounded(ctx, f.turn, func() (n int, err error) {
		err = withPolicy(f.group, func(store policy) error {
			n, err = countHostRules(store, hostRuleNames(f.group))
			return err
		})
		return n, err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("count firewall rules: %w", err)
	}
	ours, err := bounded(ctx, f.turn, func() (ours []hostNAT, err error) {
		err = withNATs(f.group, func(store hostNATs) error {
			ours, err = store.list()
			return err
		})
		return ours, err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("count NATs: %w", err)
	}
	return rules, len(ours), nil
}

// Pin does nothing: an HCN network's switch has the pods' ports.
func (*Firewall) Pin(context.Context, Pin) error { return nil }

// Unpin does nothing, like Pin.
func (*Firewall) Unpin(context.Context, int) error { return nil }

// Counters returns none: our rules drop nothing.
func (*Firewall) Counters(context.Context) (Counters, error) { return Counters{}, nil }

// Close does nothing. Our rules stay.
func (*Firewall) Close() error { return nil }
