package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func (s spans) String() string {
	var texts []string
	for _, one := range s {
		texts = append(texts, fmt.Sprintf("%d-%d", one.first.As4()[3], one.last.As4()[3]))
	}
	return strings.Join(texts, " ")
}

func spanOf(first, last byte) span {
	return span{netip.AddrFrom4([4]byte{255, 255, 255, first}), netip.AddrFrom4([4]byte{255, 255, 255, last})}
}

func TestSpans(t *testing.T) {
	for _, test := range []struct {
		name        string
		have        spans
		cut, add    span
		rest, taken string
	}{
		{"cut the middle", spans{spanOf(0, 9)}, spanOf(3, 5), span{}, "0-2 6-9", "3-5"},
		{"cut the ends of two", spans{spanOf(0, 9), spanOf(20, 29), spanOf(40, 49)}, spanOf(5, 42), span{}, "0-4 43-49", "5-9 20-29 40-42"},
		{"cut all", spans{spanOf(250, 255)}, spanOf(0, 255), span{}, "", "250-255"},
		{"cut a gap", spans{spanOf(0, 1), spanOf(8, 9)}, spanOf(2, 7), span{}, "0-1 8-9", ""},
		{"add to none", nil, span{}, spanOf(1, 2), "1-2", ""},
		{"add a gap", spans{spanOf(0, 1), spanOf(8, 9)}, span{}, spanOf(2, 7), "0-9", ""},
		{"add beside the first", spans{spanOf(0, 1), spanOf(8, 9)}, span{}, spanOf(2, 3), "0-3 8-9", ""},
		{"add beside the second", spans{spanOf(0, 1), spanOf(8, 9)}, span{}, spanOf(6, 7), "0-1 6-9", ""},
		{"add between", spans{spanOf(0, 1), spanOf(8, 9)}, span{}, spanOf(3, 3), "0-1 3-3 8-9", ""},
		{"add what is there", spans{spanOf(0, 9)}, span{}, spanOf(3, 3), "0-9", ""},
		{"add around", spans{spanOf(3, 4), spanOf(8, 9)}, span{}, spanOf(1, 20), "1-20", ""},
		{"add the last address", spans{spanOf(250, 254)}, span{}, spanOf(255, 255), "250-255", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			taken := ""
			if test.cut.first.IsValid() {
				taken = test.have.cut(test.cut).String()
			} else {
				test.have.add(test.add)
			}
			if got := test.have.String(); got != test.rest || taken != test.taken {
				t.Errorf("%q and %q, want %q and %q", got, taken, test.rest, test.taken)
			}
		})
	}
}
