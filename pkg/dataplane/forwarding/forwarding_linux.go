package forwarding

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Enable turns IPv4 and IPv6 forwarding on if they are off; it writes nothing
// that is set already. A kernel without IPv6 is no error.
//
// sysctls is where the kernel's /proc/sys/net is writable. Wherever it is
// mounted, it shows the network namespace of the process that looks.
//
// A host that forwards IPv6 stops listening to router advertisements unless
// accept_ra is 2, and would lose its own default route minutes later. So the
// interfaces that listen now are told to go on listening.
// (Linux: Documentation/networking/ip-sysctl.rst, accept_ra.)
func Enable(sysctls string) error {
	if err := set(filepath.Join(sysctls, "ipv4/ip_forward"), "1"); err != nil {
		return err
	}
	v6 := filepath.Join(sysctls, "ipv6/conf")
	if _, err := os.Stat(v6); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if on, err := isSet(filepath.Join(v6, "all/forwarding"), "1"); err != nil || on {
		return err
	}
	listening, err := filepath.Glob(filepath.Join(v6, "*/accept_ra"))
	if err != nil {
		return fmt.Errorf("find interfaces that accept router advertisements: %w", err)
	}
	for _, path := range listening {
		if on, err := isSet(path, "1"); err != nil || !on {
			continue // an interface that vanished, or one that does not listen
		}
		if err := set(path, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return set(filepath.Join(v6, "all/forwarding"), "1")
}

func isSet(path, value string) (bool, error) {
	current, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read kernel setting: %w", err)
	}
	return string(bytes.TrimSpace(current)) == value, nil
}

func set(path, value string) error {
	if on, err := isSet(path, value); err != nil || on {
		return err
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set kernel setting to %s (a container needs a mount of the host's /proc/sys/net, named by sysctlDir): %w", value, err)
	}
	return nil
}
