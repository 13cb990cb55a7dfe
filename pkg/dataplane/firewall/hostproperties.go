package firewall

import "strings"

// Values of icftypes.h.
const (
	directionIn = 1          // NET_FW_RULE_DIR_IN
	actionAllow = 1          // NET_FW_ACTION_ALLOW
	allProfiles = 0x7fffffff // NET_FW_PROFILE2_ALL
)

// ruleProperties are those of a rule of Windows' firewall, by the names of
// INetFwRule
// (https://learn.microsoft.com/windows/win32/api/netfw/nn-netfw-inetfwrule).
type ruleProperties interface {
	text(name string) (string, error)
	// number returns a bool as 0 or 1.
	number(name string) (int64, error)
	put(name string, value any) error
}

// hasPorts tells whether a rule of a protocol has ports, and else types of ICMP.
func hasPorts(protocol int32) bool { return protocol == protocolUDP || protocol == protocolTCP }

// readRule reads what a rule allows, but for its name. What is not as we write it
// counts as disabled or, where we write nothing, as edited, so that it differs from
// what is wanted.
func readRule(properties ruleProperties) (rule hostRule, err error) {
	numbers := map[string]int64{}
	for _, name := range []string{"Protocol", "Direction", "Action", "Profiles", "Enabled"} {
		if numbers[name], err = properties.number(name); err != nil {
			return hostRule{}, err
		}
	}
	rule.protocol = int32(numbers["Protocol"])
	from, err := properties.text("RemoteAddresses")
	if err != nil {
		return hostRule{}, err
	}
	if hasPorts(rule.protocol) {
		ports, err := properties.text("LocalPorts")
		if err != nil {
			return hostRule{}, err
		}
		rule.ports = parsePorts(ports)
	} else if rule.icmp, err = properties.text("IcmpTypesAndCodes"); err != nil {
		return hostRule{}, err
	}
	var readErr error
	rule.from, readErr = parsePrefixes(from)
	rule.disabled = readErr != nil || numbers["Enabled"] == 0 || numbers["Direction"] != directionIn ||
		numbers["Action"] != actionAllow || numbers["Profiles"] != allProfiles
	rule.edited, err = isEdited(properties, rule.protocol)
	return rule, err
}

// isEdited tells whether somebody has narrowed or widened a rule by what rules of ours
// leave as a new one has it: about all of this host, and to nobody behind a NAT.
func isEdited(properties ruleProperties, protocol int32) (bool, error) {
	unset := map[string]string{"LocalAddresses": anywhere, "InterfaceTypes": "All", "ApplicationName": "", "ServiceName": ""}
	if hasPorts(protocol) { // without there are none to ask for
		unset["RemotePorts"] = anywhere
	}
	for name, usual := range unset {
		have, err := properties.text(name)
		if err != nil {
			return false, err
		}
		if have != "" && !strings.EqualFold(have, usual) {
			return true, nil
		}
	}
	traversal, err := properties.number("EdgeTraversal")
	return traversal != 0, err
}

// writeRule sets what a rule says: the protocol before what depends on it.
func writeRule(properties ruleProperties, rule hostRule) error {
	special, value := "LocalPorts", portsText(rule.ports)
	if !hasPorts(rule.protocol) {
		special, value = "IcmpTypesAndCodes", rule.icmp
	}
	for _, property := range []struct {
		name  string
		value any
	}{
		{"Protocol", rule.protocol}, {special, value}, {"RemoteAddresses", prefixesText(rule.from)},
		{"Direction", int32(directionIn)}, {"Action", int32(actionAllow)}, {"Profiles", int32(allProfiles)}, {"Enabled", true},
	} {
		if err := properties.put(property.name, property.value); err != nil {
			return err
		}
	}
	return nil
}
