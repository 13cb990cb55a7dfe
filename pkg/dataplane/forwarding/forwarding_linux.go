package forwarding

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A family is how the kernel forwards packets of one IP family. Names and
// patterns are files below /proc/sys/net.
type family struct {
	toggle   string // turns forwarding on
	optional bool   // a kernel may lack the family
	rules    []rule // what changes besides
}

// A rule gives the files of a pattern a value.
type rule struct {
	pattern, value string
	only           string // those with this value, empty for all
	follows        bool   // the kernel sets them, along with the toggle
}

// families says what Enable does.
//
// The kernel makes turning IPv4 forwarding on or off a change of roles: it sets
// the interfaces' switches, and whether redirects are accepted. (Linux:
// net/ipv4/devinet.c, inet_forward_change; net/ipv6/addrconf.c,
// addrconf_fixup_forwarding.)
//
// A host that forwards IPv6 stops listening to router advertisements unless
// accept_ra is 2, and would lose its own default route minutes later. So the
// interfaces that listen now are told to go on listening.
// (Linux: Documentation/networking/ip-sysctl.rst, accept_ra.)
func families() []family {
	return []family{{
		toggle: "ipv4/ip_forward",
		rules: []rule{
			{pattern: "ipv4/conf/*/forwarding", value: "1", follows: true},
			{pattern: "ipv4/conf/all/accept_redirects", value: "0", follows: true},
		},
	}, {
		toggle: "ipv6/conf/all/forwarding", optional: true,
		rules: []rule{
			{pattern: "ipv6/conf/*/accept_ra", only: "1", value: "2"},
			{pattern: "ipv6/conf/*/forwarding", value: "1", follows: true},
		},
	}}
}

// Enable turns IPv4 and IPv6 forwarding on if they are off; it writes nothing
// that is set already. A kernel without IPv6 is no error. Before the first
// change it keeps in StateDir what the host has, for Restore.
func Enable(cfg Config) error {
	k := kernel{cfg.Sysctls}
	for _, f := range families() {
		on, err := k.get(f.toggle)
		if on == "1" || f.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		changes, err := k.changes(f)
		if err != nil {
			return err
		}
		if err := remember(cfg.StateDir, changes); err != nil {
			return err
		}
		// Last the toggle, which is the first of them.
		for _, c := range slices.Backward(changes) {
			if c.follows {
				continue
			}
			if _, err := k.set(c.Name, c.Is); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Restore puts back what Enable changed since the machine's last start, apart
// from what somebody else has changed again since. It returns the settings that
// it wrote, such as net/ipv4/ip_forward = 0. Repeating it does nothing.
func Restore(sysctls, stateDir string) (restored []string, err error) {
	settings, err := recall(stateDir)
	if err != nil {
		return nil, err
	}
	k := kernel{sysctls}
	// A toggle changes others, so what is wanted of them is decided before.
	for i := range settings {
		s := &settings[i]
		now, err := k.get(s.Name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if now != s.Is {
			s.Was = now
		}
	}
	for _, s := range settings {
		changed, err := k.set(s.Name, s.Was)
		if errors.Is(err, os.ErrNotExist) {
			continue // its interface is gone
		}
		if err != nil {
			return restored, err
		}
		if changed {
			restored = append(restored, fmt.Sprintf("net/%s = %s", s.Name, s.Was))
		}
	}
	if err := os.Remove(RecordFile(stateDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return restored, fmt.Errorf("forget the host's kernel settings: %w", err)
	}
	return restored, nil
}

// kernel is the settings of a network namespace.
type kernel struct{ sysctls string }

// changes lists what enabling a family changes: the toggle, then the rest. What
// has its value already is among it, since turning the toggle off changes that.
func (k kernel) changes(f family) ([]setting, error) {
	found := []setting{{Name: f.toggle, Was: "0", Is: "1"}}
	for _, r := range f.rules {
		paths, err := filepath.Glob(filepath.Join(k.sysctls, r.pattern))
		if err != nil {
			return nil, fmt.Errorf("find kernel settings %s: %w", r.pattern, err)
		}
		for _, path := range paths {
			name := strings.TrimPrefix(path, filepath.Clean(k.sysctls)+"/")
			now, err := k.get(name)
			if errors.Is(err, os.ErrNotExist) || name == f.toggle || r.only != "" && r.only != now {
				continue // its interface vanished, it is listed already, or it stays
			}
			if err != nil {
				return nil, err
			}
			found = append(found, setting{Name: name, Was: now, Is: r.value, follows: r.follows})
		}
	}
	return found, nil
}

func (k kernel) get(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join(k.sysctls, name))
	if err != nil {
		return "", fmt.Errorf("read kernel setting: %w", err)
	}
	return string(bytes.TrimSpace(value)), nil
}

// set writes a setting unless it has the value, and tells whether it did.
func (k kernel) set(name, value string) (changed bool, err error) {
	if now, err := k.get(name); err != nil || now == value {
		return false, err
	}
	if err := os.WriteFile(filepath.Join(k.sysctls, name), []byte(value), 0); err != nil {
		return false, fmt.Errorf("set kernel setting to %s (a container needs a mount of the host's /proc/sys/net, named by sysctlDir): %w", value, err)
	}
	return true, nil
}
