package firewall

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeRule is a rule as INetFwRule has a new one. It takes no ports before the
// protocol has them, and none of the other kind.
type fakeRule struct {
	properties map[string]any
	broken     string // cannot be read
}

func newFakeRule() *fakeRule {
	const anyProtocol, inbound, allow = int32(256), int32(1), int32(1)
	return &fakeRule{properties: map[string]any{
		"Protocol": anyProtocol, "Direction": inbound, "Action": allow, "Profiles": int32(allProfiles), "Enabled": false, "EdgeTraversal": false,
		"LocalAddresses": "*", "RemoteAddresses": "*", "InterfaceTypes": "All", "ApplicationName": "", "ServiceName": "",
	}}
}

func (f *fakeRule) text(name string) (string, error) {
	value, is := f.properties[name].(string)
	if !is || name == f.broken {
		return "", fmt.Errorf("read %s", name)
	}
	return value, nil
}

func (f *fakeRule) number(name string) (int64, error) {
	if name == f.broken {
		return 0, fmt.Errorf("read %s", name)
	}
	switch value := f.properties[name].(type) {
	case int32:
		return int64(value), nil
	case bool:
		if value {
			return 1, nil
		}
		return 0, nil
	}
	return 0, fmt.Errorf("read %s", name)
}

func (f *fakeRule) put(name string, value any) error {
	protocol, _ := f.properties["Protocol"].(int32)
	switch {
	case name == "Protocol" && hasPorts(value.(int32)):
		f.properties["LocalPorts"], f.properties["RemotePorts"] = "*", "*"
	case name == "LocalPorts" && !hasPorts(protocol), name == "IcmpTypesAndCodes" && hasPorts(protocol):
		return errors.New("of another protocol")
	}
	f.properties[name] = value
	return nil
}

// A rule that is as it was written reads as what is wanted, and one that somebody
// changed in any way does not.
func TestHostRuleProperties(t *testing.T) {
	wanted := wantedHostRules("zlayer", Rules{Ports: []uint16{51820}, NamePorts: []uint16{53}, Cluster: hostPrefixes("10.200.0.0/16", "fd00:200::/48")})
	for _, rule := range wanted {
		written := func() *fakeRule {
			item := newFakeRule()
			if err := writeRule(item, rule); err != nil {
				t.Fatal(err)
			}
			return item
		}
		got, err := readRule(written())
		got.name = rule.name
		if diff := cmp.Diff(rule, got, compareHost); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", rule.name, err, diff)
		}
		for name, value := range map[string]any{
			"Enabled": false, "Direction": int32(2), "Action": int32(0), "Profiles": int32(1), "EdgeTraversal": true,
			"RemoteAddresses": "LocalSubnet", "LocalAddresses": "192.0.2.1", "InterfaceTypes": "Wireless", "ApplicationName": "C:\\other.exe", "ServiceName": "other",
			"LocalPorts": "1-9", "RemotePorts": "1", "IcmpTypesAndCodes": "8:0",
		} {
			item := written()
			if _, has := item.properties[name]; !has {
				continue // not of this protocol
			}
			item.properties[name] = value
			if got, err := readRule(item); err != nil || sameHostRule(got, rule) {
				t.Errorf("%s with %s %v reads as wanted (%v)", rule.name, name, value, err)
			}
			item.broken = name
			if got, err := readRule(item); err == nil {
				t.Errorf("%s whose %s cannot be read is %v", rule.name, name, got)
			}
		}
		loose := written()
		loose.properties["LocalAddresses"], loose.properties["InterfaceTypes"] = "", "all" // as Windows may give them
		if got, err := readRule(loose); err != nil || !sameHostRule(got, rule) {
			t.Errorf("%s: %v, %v", rule.name, got, err)
		}
	}
}
