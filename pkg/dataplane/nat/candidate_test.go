package nat

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// byValue compares addresses, which hide what they are made of.
var byValue = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestParseCandidate(t *testing.T) {
	tests := map[string]struct {
		text string
		want Candidate
	}{
		"host":                 {"host/192.0.2.1:51820", Candidate{Host, addrPort("192.0.2.1:51820")}},
		"reflexive":            {"server_reflexive/203.0.113.7:40001", Candidate{Reflexive, addrPort("203.0.113.7:40001")}},
		"relay, IPv6":          {"relay/[2001:db8::1]:49152", Candidate{Relayed, addrPort("[2001:db8::1]:49152")}},
		"private":              {"host/10.1.2.3:1", Candidate{Host, addrPort("10.1.2.3:1")}},
		"unique local":         {"host/[fd00::1]:65535", Candidate{Host, addrPort("[fd00::1]:65535")}},
		"IPv4 in IPv6 clothes": {"host/[::ffff:192.0.2.1]:51820", Candidate{Host, addrPort("192.0.2.1:51820")}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCandidate(test.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, byValue); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseCandidateRefuses(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"nothing":             {"", "want KIND/ADDRESS:PORT"},
		"no kind":             {"192.0.2.1:51820", "want KIND/ADDRESS:PORT"},
		"empty kind":          {"/192.0.2.1:51820", "kind is none of"},
		"other kind":          {"prflx/192.0.2.1:51820", "kind is none of"},
		"kind in capitals":    {"HOST/192.0.2.1:51820", "kind is none of"},
		"no port":             {"host/192.0.2.1", "want KIND/ADDRESS:PORT"},
		"name":                {"host/node.example:51820", "want KIND/ADDRESS:PORT"},
		"bare IPv6":           {"host/2001:db8::1:51820", "want KIND/ADDRESS:PORT"},
		"space":               {"host/ 192.0.2.1:51820", "want KIND/ADDRESS:PORT"},
		"large port":          {"host/192.0.2.1:65536", "want KIND/ADDRESS:PORT"},
		"port 0":              {"host/192.0.2.1:0", "port 0"},
		"unspecified":         {"host/0.0.0.0:51820", "unspecified"},
		"unspecified IPv6":    {"host/[::]:51820", "unspecified"},
		"unspecified, mapped": {"host/[::ffff:0.0.0.0]:51820", "unspecified"},
		"loopback":            {"host/127.1.2.3:51820", "loopback"},
		"loopback, mapped":    {"host/[::ffff:127.0.0.1]:51820", "loopback"},
		"loopback IPv6":       {"host/[::1]:51820", "loopback"},
		"multicast":           {"host/224.0.0.1:51820", "multicast"},
		"multicast IPv6":      {"host/[ff02::1]:51820", "multicast"},
		"broadcast":           {"host/255.255.255.255:51820", "reserved"},
		"reserved":            {"host/240.0.0.1:51820", "reserved"},
		"this network":        {"host/0.1.2.3:51820", "this network"},
		"link-local IPv6":     {"host/[fe80::1]:51820", "link-local"},
		"link-local IPv4":     {"host/169.254.169.254:51820", "link-local"},
		"zone":                {"host/[fe80::1%eth0]:51820", "zone"},
		"zone of a global":    {"host/[2001:db8::1%eth0]:51820", "zone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCandidate(test.text)
			if err == nil {
				t.Fatalf("got %v, want an error", got)
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "candidate \"") {
				t.Errorf("error %q does not name the candidate and %q", err, test.want)
			}
		})
	}
}

func TestCandidateText(t *testing.T) {
	nodes := []Candidate{{Host, addrPort("192.0.2.1:51820")}, {Relayed, addrPort("[2001:db8::1]:49152")}}
	text, err := json.Marshal(nodes)
	if err != nil {
		t.Fatal(err)
	}
	if want := `["host/192.0.2.1:51820","relay/[2001:db8::1]:49152"]`; string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	var got []Candidate
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(nodes, got, byValue); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if text, err := json.Marshal(Candidate{}); err == nil {
		t.Errorf("the zero candidate is %s, want an error", text)
	}
	if err := json.Unmarshal([]byte(`["host/127.0.0.1:1"]`), &got); err == nil {
		t.Error("a loopback candidate was read")
	}
}

func TestParseCandidates(t *testing.T) {
	long := strings.Repeat("a", maxCandidatesText-len("host/192.0.2.1:1,"))
	tests := map[string]struct {
		text string
		want []Candidate
		errs []string
	}{
		"none": {text: ""},
		"sorted": {
			text: "relay/192.0.2.9:1,host/[2001:db8::1]:1,host/192.0.2.2:1,host/192.0.2.1:2,host/192.0.2.1:1,server_reflexive/192.0.2.1:1",
			want: []Candidate{
				{Host, addrPort("192.0.2.1:1")}, {Host, addrPort("192.0.2.1:2")}, {Host, addrPort("192.0.2.2:1")}, {Host, addrPort("[2001:db8::1]:1")},
				{Reflexive, addrPort("192.0.2.1:1")}, {Relayed, addrPort("192.0.2.9:1")},
			},
		},
		"duplicates": {
			text: "host/192.0.2.1:1,relay/192.0.2.1:1,host/192.0.2.1:1,host/[::ffff:192.0.2.1]:1",
			want: []Candidate{{Host, addrPort("192.0.2.1:1")}, {Relayed, addrPort("192.0.2.1:1")}},
		},
		"bad ones cost themselves": {
			text: "host/127.0.0.1:1,host/192.0.2.1:1,,nonsense",
			want: []Candidate{{Host, addrPort("192.0.2.1:1")}},
			errs: []string{`"host/127.0.0.1:1"`, `""`, `"nonsense"`},
		},
		"as many as may be": {text: many(MaxCandidates), want: parsed(t, many(MaxCandidates))},
		"too many":          {text: many(MaxCandidates + 1), errs: []string{"a list of 17, more than 16"}},
		"as long as may be": {text: "host/192.0.2.1:1," + long, want: []Candidate{{Host, addrPort("192.0.2.1:1")}}, errs: []string{long}},
		"too long":          {text: "host/192.0.2.1:1,a" + long, errs: []string{"1025 bytes, more than 1024"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCandidates(test.text)
			if diff := cmp.Diff(test.want, got, byValue); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if (err != nil) != (test.errs != nil) {
				t.Fatalf("error %v, want %v", err, test.errs)
			}
			for _, want := range test.errs {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
		})
	}
}

// many returns the text of n good candidates.
func many(n int) string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprintf("host/192.0.2.1:%d", i+1)
	}
	return strings.Join(texts, ",")
}

func parsed(t *testing.T, text string) []Candidate {
	t.Helper()
	var list []Candidate
	for one := range strings.SplitSeq(text, ",") {
		c, err := ParseCandidate(one)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

func TestFormatCandidates(t *testing.T) {
	var hosts, wide []Candidate
	for i := range uint16(30) {
		hosts = append(hosts, Candidate{Host, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 1+i)})
		wide = append(wide, Candidate{Reflexive, netip.AddrPortFrom(netip.MustParseAddr("2001:1db8:1111:2222:3333:4444:5555:6666"), 60000+i)})
	}
	relay, reflexive := Candidate{Relayed, addrPort("192.0.2.9:1")}, Candidate{Reflexive, addrPort("192.0.2.8:1")}
	tests := map[string]struct {
		candidates []Candidate
		want       []Candidate
	}{
		"none":       {},
		"sorted":     {[]Candidate{relay, hosts[1], reflexive, hosts[0]}, []Candidate{hosts[0], hosts[1], reflexive, relay}},
		"duplicates": {[]Candidate{relay, hosts[1], relay, hosts[1]}, []Candidate{hosts[1], relay}},
		"not valid":  {[]Candidate{{}, {Host, addrPort("127.0.0.1:1")}, hosts[0], {"other", addrPort("192.0.2.1:1")}}, []Candidate{hosts[0]}},
		"too many":   {slices.Concat(hosts, []Candidate{relay, reflexive}), slices.Concat(hosts[:14], []Candidate{reflexive, relay})},
		"too long":   {slices.Concat(wide, []Candidate{relay}), slices.Concat(wide[:15], []Candidate{relay})},
		"too wide":   {wide, wide[:15]},
		"two crowds": {slices.Concat(hosts, wide), slices.Concat(hosts[:8], wide[:8])},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(test.candidates)
			text := FormatCandidates(test.candidates)
			if diff := cmp.Diff(before, test.candidates, byValue); diff != "" {
				t.Errorf("it changed its argument (-want +got)\n%s", diff)
			}
			got, err := ParseCandidates(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, byValue); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func FuzzParseCandidates(f *testing.F) {
	for _, seed := range []string{
		"", ",", "host/192.0.2.1:51820", "server_reflexive/203.0.113.7:40001,relay/[2001:db8::1]:49152", "host/[::ffff:192.0.2.1]:1", "host/[fe80::1%eth0]:1",
		"host/0.0.0.0:0", "host/192.0.2.1:00001", many(MaxCandidates), many(MaxCandidates + 1), "host//1", "/", strings.Repeat(",", 15),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, _ := ParseCandidates(text)
		if len(got) > MaxCandidates {
			t.Fatalf("%d candidates", len(got))
		}
		for _, c := range got {
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		}
		again, err := ParseCandidates(FormatCandidates(got))
		if err != nil {
			t.Fatal(err)
		}
		// What was written short may be too long once it is whole, and only then is anything lost.
		if len(joinCandidates(got)) > maxCandidatesText {
			got = got[:0]
			again = again[:0]
		}
		if diff := cmp.Diff(got, again, byValue, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}
