package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

func TestParseKeepalive(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
		ok   bool
	}{
		{"", 0, true}, {"0", 0, true}, {"0s", 0, true}, {"25", 25 * time.Second, true}, {"25s", 25 * time.Second, true},
		{"2m", 2 * time.Minute, true}, {"65535", maxKeepalive, true}, {"65536", 0, false}, {"65536s", 0, false},
		{"-1s", 0, false}, {"1500ms", 0, false}, {"1e3s", 0, false}, {"25 s", 0, false}, {"often", 0, false}, {"9999999999h", 0, false},
	}
	for _, tt := range tests {
		if got, err := parseKeepalive(tt.text); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("parseKeepalive(%q) = %v, %v", tt.text, got, err)
		}
	}
}

func TestParseSubnets(t *testing.T) {
	tests := []struct{ name, text, pods, services, err string }{
		{"both families", "networking:\n  podSubnet: 10.244.0.0/16, fd00:10:244::/56\n  serviceSubnet: 10.96.0.0/12,fd00:10:96::/112\n", "10.244.0.0/16 fd00:10:244::/56", "10.96.0.0/12 fd00:10:96::/112", ""},
		{"bits beyond the length", "networking: {podSubnet: 10.244.1.2/16}", "10.244.0.0/16", "", ""},
		{"none", "networking: {}", "", "", ""},
		{"empty", "", "", "", ""},
		{"no YAML", "networking: {", "", "", "parse ClusterConfiguration"},
		{"no prefix", "networking: {podSubnet: 'a,b'}", "", "", `networking.podSubnet: "a" is not a network prefix`},
		{"everything", "networking: {podSubnet: '::/0'}", "", "", `"::/0" is not a network prefix`},
		{"pods alone", "networking: {podSubnet: 10.244.0.0/16, serviceSubnet: a}", "10.244.0.0/16", "", `networking.serviceSubnet: "a" is not a network prefix`},
		{"services alone", "networking: {podSubnet: a, serviceSubnet: 10.96.0.0/12}", "", "10.96.0.0/12", `networking.podSubnet: "a" is not a network prefix`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pods, services, err := parseSubnets(tt.text)
			if joined(pods) != tt.pods || joined(services) != tt.services || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("pods %v, services %v, error %v", pods, services, err)
			}
		})
	}
}

func joined(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, " ")
}

func FuzzParseSubnets(f *testing.F) {
	f.Add("networking:\n  podSubnet: 10.244.0.0/16,fd00:10:244::/56\n")
	f.Add("networking: {podSubnet: ','}")
	f.Add("networking: {serviceSubnet: '10.96.0.0/12', podSubnet: x}")
	f.Add("networking: [a]")
	f.Fuzz(func(t *testing.T, text string) {
		pods, services, err := parseSubnets(text)
		if err != nil && len(pods) > 0 && len(services) > 0 {
			t.Errorf("prefixes %v and %v with the error %v", pods, services, err)
		}
		for _, p := range slices.Concat(pods, services) {
			if p != p.Masked() || p.Bits() == 0 {
				t.Errorf("prefix %v", p)
			}
		}
	})
}

func FuzzMemberOf(f *testing.F) {
	f.Add(keyFor("a"), "192.0.2.1:51820", "", "25s")
	f.Add("", "", "gate.example:1", "often")
	f.Add(strings.Repeat("A", maxAnnotation+1), "", "", "")
	f.Add("", strings.Repeat("A", 2*maxAnnotation), "", "")
	f.Fuzz(func(t *testing.T, key, endpoint, forced, keepalive string) {
		object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{
			PublicKey: key, Endpoint: endpoint, ForceEndpoint: forced, Keepalive: keepalive, "other": "x",
		}}}
		strip(object)
		if _, there := object.Annotations["other"]; there {
			t.Error("an annotation that is not ours was kept")
		}
		for key, value := range object.Annotations {
			if len(value) > maxAnnotation+1 {
				t.Errorf("%d bytes of %s were kept", len(value), key)
			}
		}
		got := memberOf(object)
		if size := max(len(got.publicKey), len(got.endpoint)); size > maxAnnotation {
			t.Errorf("%d bytes were kept", size)
		}
		if got.fault == nil && (got.keepalive < 0 || got.keepalive > maxKeepalive || got.keepalive%time.Second != 0) {
			t.Errorf("keepalive %v", got.keepalive)
		}
		if before, now := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", memberOf(object)); before != now && got.fault == nil {
			t.Errorf("read again: %s, before %s", now, before)
		}
	})
}

func FuzzParseServices(f *testing.F) {
	f.Add(formatServices([]wireguard.NodeService{{Name: "ns/web", PublicKey: keyFor("a"), Port: 51821, Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.0.240/28")}}}))
	f.Add(`{"ns/web":{"port":-1,"blocks":["0.0.0.0/0"]},"":null}`)
	f.Add(`[]`)
	f.Add(strings.Repeat("[", maxServices+1))
	f.Fuzz(func(t *testing.T, text string) {
		services, err := parseServices(text)
		if err != nil {
			if services != nil {
				t.Errorf("%v with the error %v", services, err)
			}
			return
		}
		again, err := parseServices(formatServices(services))
		if err != nil || !slices.EqualFunc(services, again, wireguard.NodeService.Equal) {
			t.Errorf("%v written and read is %v, %v", services, again, err)
		}
	})
}

func FuzzParseSlices(f *testing.F) {
	f.Add("10.244.0.0/24", "fd00::/64")
	f.Add("10.244.0.1/24", "")
	f.Add("::ffff:10.0.0.0/104", "0.0.0.0/0")
	f.Fuzz(func(t *testing.T, a, b string) {
		got, err := parseSlices([]string{a, b})
		if (err == nil) != (len(got) == 2) {
			t.Errorf("slices %v, error %v", got, err)
		}
		for _, p := range got {
			if !p.IsValid() || p != p.Masked() {
				t.Errorf("slice %v", p)
			}
		}
	})
}

// TestOrderKeepsWhatIsBound: see sortMembers.
func TestOrderKeepsWhatIsBound(t *testing.T) {
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	members := []member{
		{name: "new", uid: "6", created: at(6), publicKey: "n"},
		{name: "self", uid: "7", created: at(7)},
		{name: "oldest, but new here", uid: "1", created: at(1), publicKey: "x"},
		{name: "bound", uid: "4", created: at(4), publicKey: "k4"},
		{name: "bound before", uid: "3", created: at(3), publicKey: "k3"},
		{name: "b, as old", uid: "5", created: at(3), publicKey: "k5"},
		{name: "older, changed its key", uid: "2", created: at(2), publicKey: "k4"},
	}
	sortMembers(members, "self", map[types.UID]string{"2": "k2", "3": "k3", "4": "k4", "5": "k5"})
	var got []string
	for _, m := range members {
		got = append(got, m.name)
	}
	want := []string{"self", "b, as old", "bound before", "bound", "older, changed its key", "oldest, but new here", "new"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	var b backoff
	for range 100 {
		before := max(b.wait, firstRetry/2)
		got := b.next()
		if got < before/2 || got >= lastRetry*3/2 || b.wait > lastRetry {
			t.Fatalf("after %v came %v", before, got)
		}
	}
	if b.wait != lastRetry {
		t.Errorf("the pause ends at %v", b.wait)
	}
}
