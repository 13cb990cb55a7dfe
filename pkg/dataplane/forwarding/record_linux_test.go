package forwarding

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParseRecord checks that a record leads nowhere but to settings that
// forwarding changes.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"boot":"b","settings":[{"name":"ipv4/ip_forward","was":"0","is":"1"},{"name":"ipv6/conf/eth0.1/accept_ra","was":"1","is":"2"}]}`))
	f.Add([]byte(`{"settings":[{"name":"ipv6/conf/../accept_ra"}]}`))
	f.Add([]byte(`{"settings":[{"name":"/etc/passwd"}]}`))
	f.Add([]byte(`{"settings":[{"name":"ipv4/conf/a/../../b/forwarding"}]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for _, s := range r.Settings {
			path := filepath.Join("/sys", s.Name)
			last := filepath.Base(path)
			if path != "/sys/"+s.Name || !strings.HasPrefix(path, "/sys/ipv") ||
				last != "ip_forward" && last != "forwarding" && last != "accept_redirects" && last != "accept_ra" {
				t.Errorf("setting %q", s.Name)
			}
		}
	})
}
