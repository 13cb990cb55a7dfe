package nat

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var someFingerprint = strings.Repeat("9f", 32)

func TestRelayOffers(t *testing.T) {
	udp, six := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:5349")
	tests := []struct {
		name, text string
		want       RelayOffer
		wrong      string
	}{
		{name: "UDP alone", text: "udp=192.0.2.1:3478", want: RelayOffer{UDP: udp}},
		{name: "all", text: "udp=192.0.2.1:3478,tcp=192.0.2.1:3478,tls=[2001:db8::1]:5349,key=" + someFingerprint, want: RelayOffer{UDP: udp, TCP: udp, TLS: six, Fingerprint: someFingerprint}},
		{name: "in IPv6's clothes", text: "udp=[::ffff:192.0.2.1]:3478", want: RelayOffer{UDP: udp}},
		{name: "of a later version", text: "udp=192.0.2.1:3478,quic=3", want: RelayOffer{UDP: udp}},
		{name: "capital digits", text: "udp=192.0.2.1:3478,key=" + strings.ToUpper(someFingerprint), want: RelayOffer{UDP: udp, Fingerprint: someFingerprint}},
		{name: "nothing", text: "", wrong: "not NAME=VALUE"},
		{name: "no address", text: "key=" + someFingerprint, wrong: "no address"},
		{name: "TLS without a key", text: "tls=192.0.2.1:5349", wrong: "tls without a key"},
		{name: "short key", text: "udp=192.0.2.1:3478,key=9f", wrong: "key: not 64"},
		{name: "loopback", text: "udp=127.0.0.1:3478", wrong: "udp: 127.0.0.1:3478"},
		{name: "no port", text: "tcp=192.0.2.1:0", wrong: "tcp: 192.0.2.1:0"},
		{name: "a name", text: "udp=relay.example:3478", wrong: "not ADDRESS:PORT"},
		{name: "too long", text: "udp=192.0.2.1:3478," + strings.Repeat("a=b,", 100), wrong: "more than 256"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseRelayOffer(tc.text)
			if tc.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wrong) {
					t.Errorf("got %v, want an error with %q", err, tc.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, err := ParseRelayOffer(got.String())
			if err != nil || again != got {
				t.Errorf("%v is read back as %v, %v", got, again, err)
			}
		})
	}
}

func FuzzRelayOffer(f *testing.F) {
	for _, seed := range []string{"udp=192.0.2.1:3478", "tls=[2001:db8::1]:5349,key=" + someFingerprint, "udp=,=,key", "quic=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		offer, err := ParseRelayOffer(text)
		if err != nil {
			return
		}
		if again, err := ParseRelayOffer(offer.String()); err != nil || again != offer {
			t.Errorf("%v is read back as %v, %v", offer, again, err)
		}
	})
}
