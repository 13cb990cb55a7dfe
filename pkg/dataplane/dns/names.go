package dns

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// The limits of RFC 1035, section 2.3.4, in bytes. That of a name counts the
// lengths of its labels and the root's, so 253 are left for the text.
const (
	maxName  = 255
	maxLabel = 63
)

// appendLabels appends the labels of text as they are on the wire, in lower case,
// without the root's zero. Names that are served have the characters of host names
// and underscores: none needs an escape, and none can be taken for a wildcard.
func appendLabels(wire []byte, text string) ([]byte, error) {
	if len(text) > maxName {
		return nil, fmt.Errorf("name of %d bytes: %w", len(text), ErrName)
	}
	for rest, more := text, true; more; {
		var label string
		label, rest, more = strings.Cut(rest, ".")
		switch {
		case label == "":
			return nil, fmt.Errorf("%q has an empty label: %w", text, ErrName)
		case len(label) > maxLabel:
			return nil, fmt.Errorf("%q has a label of %d bytes: %w", text, len(label), ErrName)
		}
		wire = append(wire, byte(len(label)))
		for i := range len(label) {
			c := lower(label[i])
			if !inHostName(c) {
				return nil, fmt.Errorf("%q has %q: %w", text, c, ErrName)
			}
			wire = append(wire, c)
		}
	}
	return wire, nil
}

// appendName appends name, which is absolute with a dot at its end and else
// relative to the zone with the given wire format.
func appendName(wire []byte, name, zone string) ([]byte, error) {
	text, absolute := strings.CutSuffix(name, ".")
	wire, err := appendLabels(wire, text)
	if err != nil {
		return nil, err
	}
	if absolute {
		wire = append(wire, 0)
	} else {
		wire = append(wire, zone...)
	}
	if len(wire) > maxName {
		return nil, fmt.Errorf("%q is %d bytes too long: %w", name, len(wire)-maxName, ErrName)
	}
	return wire, nil
}

// questionName is the wire format, in lower case, of a question's name, which may
// have escapes for all bytes there are. It is nil if there is none.
func questionName(wire *[maxName]byte, text string) []byte {
	end, err := dns.PackDomainName(text, wire[:], 0, nil, false)
	if err != nil || end == 0 {
		return nil
	}
	// Lengths are at most 63, less than any letter.
	for i, c := range wire[:end] {
		wire[i] = lower(c)
	}
	return wire[:end]
}

// nameText is the text of a name that needs no escapes, with a dot at its end.
func nameText(wire string) string {
	var text strings.Builder
	text.Grow(len(wire))
	for at := 0; wire[at] != 0; at += 1 + int(wire[at]) {
		text.WriteString(wire[at+1 : at+1+int(wire[at])])
		text.WriteByte('.')
	}
	return text.String()
}

// lower is c in lower case. DNS knows cases of ASCII letters only (RFC 4343).
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func inHostName(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
