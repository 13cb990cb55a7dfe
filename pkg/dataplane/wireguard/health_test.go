package wireguard

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// healthLook is one look at a peer, seconds after the one before.
type healthLook struct {
	after    int  // seconds
	tx, rx   int  // bytes since the last look
	shook    bool // a handshake was completed just now
	probe    string
	want     HealthState
	reason   string
	suspects bool
}

const (
	probeAnswered = "answered"
	probeLost     = "lost"
)

var healthEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Without a keepalive an answer may take 37 s, with one of 10 s it may take 15.
func TestHealth(t *testing.T) {
	established := healthLook{shook: true, want: Healthy, reason: "handshake 0s ago"}
	for _, test := range []struct {
		name      string
		keepalive time.Duration
		looks     []healthLook
	}{
		{"never heard, nothing sent", 0, []healthLook{
			{want: HealthUnknown, reason: "never heard"}, {after: 1000, want: HealthUnknown, reason: "never heard"},
		}},
		{"found with a session", 0, []healthLook{established, {after: 5, tx: 9, rx: 9, want: Healthy, reason: "answers"}}},
		{"first answer", 0, []healthLook{
			{want: HealthUnknown, reason: "never heard"},
			{after: 5, tx: 148, want: HealthUnknown, reason: "never heard"},
			{after: 5, rx: 92, shook: true, want: Healthy, reason: "answers"},
		}},
		{"never answers", 0, []healthLook{
			{want: HealthUnknown, reason: "never heard"},
			{after: 5, tx: 148, want: HealthUnknown, reason: "never heard"},
			{after: 37, tx: 148, want: HealthUnknown, reason: "never heard"},
			{after: 1, want: HealthUnknown, reason: "never heard", suspects: true},
			{after: 5, tx: 148, want: HealthUnknown, reason: "never heard", suspects: true},
			{after: 5, tx: 148, want: Unhealthy, reason: "no answer for 48s", suspects: true},
		}},
		{"silence becomes idle, not worse", 0, []healthLook{
			established,
			{after: 5, tx: 9, rx: 9, want: Healthy, reason: "answers"},
			{after: 37, want: Healthy, reason: "answers"},
			{after: 1, want: Idle, reason: "no traffic"},
			{after: 10000, want: Idle, reason: "no traffic"},
			{after: 5, tx: 9, rx: 9, shook: true, want: Healthy, reason: "answers"},
		}},
		{"what is received alone is fine", 0, []healthLook{
			established,
			{after: 60, rx: 9, want: Healthy, reason: "answers"},
			{after: 60, rx: 9, want: Healthy, reason: "answers"},
		}},
		{"two bad looks and an answer", 0, []healthLook{
			established,
			{after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 40, tx: 9, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 5, rx: 9, want: Healthy, reason: "answers"},
			{after: 5, tx: 9, want: Healthy, reason: "answers"},
			{after: 40, tx: 9, want: Healthy, reason: "answers", suspects: true},
			{after: 5, tx: 9, want: Healthy, reason: "answers", suspects: true},
			{after: 5, tx: 9, want: Unhealthy, reason: "no answer for 50s", suspects: true},
		}},
		{"nothing more is sent, but what was has no answer", 0, []healthLook{
			established, {after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 40, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 5, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 5, want: Unhealthy, reason: "no answer for 50s", suspects: true},
		}},
		{"two answers make it healthy again", 0, []healthLook{
			{want: HealthUnknown, reason: "never heard"},
			{after: 1, probe: probeLost, want: HealthUnknown, reason: "never heard"},
			{after: 1, probe: probeLost, want: HealthUnknown, reason: "never heard"},
			{after: 1, probe: probeLost, want: Unhealthy, reason: "probe failed: lost"},
			{after: 1, rx: 9, shook: true, want: Unhealthy, reason: "probe failed: lost"},
			{after: 1, probe: probeLost, want: Unhealthy, reason: "probe failed: lost"},
			{after: 1, rx: 9, want: Unhealthy, reason: "probe failed: lost"},
			{after: 1, want: Unhealthy, reason: "probe failed: lost"},
			{after: 1, probe: probeAnswered, want: Healthy, reason: "answers"},
		}},
		{"a probe that is answered ends the suspicion", 0, []healthLook{
			established, {after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 40, tx: 9, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 1, tx: 9, probe: probeAnswered, want: Healthy, reason: "answers"},
			{after: 30, tx: 9, want: Healthy, reason: "answers"},
		}},
		{"traffic weighs more than a probe", 0, []healthLook{
			established, {after: 5, rx: 9, probe: probeLost, want: Healthy, reason: "answers"},
		}},
		{"an unhealthy peer is probed now and then", 0, []healthLook{
			established, {after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 40, tx: 9, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 1, tx: 9, probe: probeLost, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 1, tx: 9, probe: probeLost, want: Unhealthy, reason: "probe failed: lost"},
			{after: 37, tx: 9, want: Unhealthy, reason: "no answer for 1m19s"},
			{after: 1, tx: 9, want: Unhealthy, reason: "no answer for 1m20s", suspects: true},
		}},
		{"its keepalive decides", 10 * time.Second, []healthLook{
			established, {after: 5, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 14, tx: 9, want: Healthy, reason: "handshake 0s ago"},
			{after: 1, tx: 9, want: Healthy, reason: "handshake 0s ago", suspects: true},
		}},
		{"a keepalive that cannot be sent", 10 * time.Second, []healthLook{
			established, {after: 5, want: Healthy, reason: "handshake 0s ago"},
			{after: 15, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 1, want: Healthy, reason: "handshake 0s ago", suspects: true},
			{after: 1, want: Unhealthy, reason: "no answer for 17s", suspects: true},
		}},
		{"handshakes alone are no answer", 0, []healthLook{
			established, {after: 179, tx: 9, rx: 148, want: Healthy, reason: "answers"},
			{after: 5, tx: 9, rx: 148, want: Healthy, reason: "answers"},
			{after: 38, tx: 9, rx: 148, want: Healthy, reason: "answers", suspects: true},
			{after: 5, tx: 9, rx: 148, want: Healthy, reason: "answers", suspects: true},
			{after: 5, tx: 9, rx: 148, want: Unhealthy, reason: "no answer for 48s", suspects: true},
		}},
		{"counters begin anew with the device", 0, []healthLook{
			established, {after: 5, tx: 1000, rx: 1000, want: Healthy, reason: "answers"},
			{after: 5, tx: 9, want: Healthy, reason: "answers"},
			{after: 40, tx: -1000, rx: -990, want: Healthy, reason: "answers"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) { followHealth(t, test.keepalive, test.looks) })
	}
}

func followHealth(t *testing.T, keepalive time.Duration, looks []healthLook) {
	health := NewHealth()
	peer := planned(2)
	peer.Keepalive = keepalive
	health.SetPeers([]Peer{peer})
	status := PeerStatus{Node: peer.Node, PublicKey: peer.PublicKey, Endpoint: peer.Endpoint}
	now, before := healthEpoch, HealthUnknown
	for i, look := range looks {
		now = now.Add(time.Duration(look.after) * time.Second)
		status.TxBytes += uint64(look.tx)
		status.RxBytes += uint64(look.rx)
		if look.shook {
			status.LastHandshake = now
		}
		var probes map[wgtypes.Key]ProbeResult
		switch look.probe {
		case probeAnswered:
			probes = map[wgtypes.Key]ProbeResult{peer.PublicKey: {RTT: time.Millisecond}}
		case probeLost:
			probes = map[wgtypes.Key]ProbeResult{peer.PublicKey: {Err: errors.New("lost")}}
		}
		changes := health.Observe(now, []PeerStatus{status}, probes)
		got := health.Peers()[0]
		if got.State != look.want || got.Reason != look.reason {
			t.Errorf("look %d: %s (%s), want %s (%s)", i, got.State, got.Reason, look.want, look.reason)
		}
		if suspects := len(health.Suspects(now)) > 0; suspects != look.suspects {
			t.Errorf("look %d: to be probed %v, want %v", i, suspects, look.suspects)
		}
		var want []HealthChange
		if look.want != before {
			want = []HealthChange{{PeerHealth: got, Before: before}}
			if !got.Since.Equal(now) || got.Node != peer.Node || got.PublicKey != peer.PublicKey {
				t.Errorf("look %d: changed at %v: %+v", i, now, got)
			}
		}
		if diff := cmp.Diff(want, changes); diff != "" {
			t.Errorf("look %d: changes (-want +got):\n%s", i, diff)
		}
		if look.probe == probeAnswered && got.RTT != time.Millisecond {
			t.Errorf("look %d: round trip %v", i, got.RTT)
		}
		before = look.want
	}
}

// A device that is found with a session of long ago says nothing bad of it.
func TestHealthOfAnOldSession(t *testing.T) {
	health := NewHealth()
	status := PeerStatus{PublicKey: named("old"), LastHandshake: healthEpoch.Add(-time.Hour), TxBytes: 9, RxBytes: 9}
	health.Observe(healthEpoch, []PeerStatus{status}, nil)
	if got := health.Peers()[0]; got.State != Idle || got.Reason != "last handshake 1h0m0s ago" {
		t.Errorf("%s (%s)", got.State, got.Reason)
	}
}

// A peer without an endpoint cannot be sent to, so its keepalive says nothing.
func TestHealthWithoutEndpoint(t *testing.T) {
	health := NewHealth()
	peer := planned(2)
	health.SetPeers([]Peer{peer})
	for i := range 10 {
		now := healthEpoch.Add(time.Duration(i) * time.Minute)
		health.Observe(now, []PeerStatus{{PublicKey: peer.PublicKey}}, nil)
		if got := health.Peers()[0]; got.State != HealthUnknown || len(health.Suspects(now)) != 0 {
			t.Fatalf("%s (%s)", got.State, got.Reason)
		}
	}
}

func TestHealthKeepsPeersApart(t *testing.T) {
	health := NewHealth()
	good := PeerStatus{Node: "good", PublicKey: named("good"), LastHandshake: healthEpoch}
	bad := PeerStatus{Node: "bad", PublicKey: named("bad"), LastHandshake: healthEpoch}
	health.Observe(healthEpoch, []PeerStatus{good, bad}, nil)
	lost := map[wgtypes.Key]ProbeResult{bad.PublicKey: {Err: errors.New("lost")}}
	var changes []HealthChange
	for range badLooks {
		good.RxBytes++
		changes = append(changes, health.Observe(healthEpoch, []PeerStatus{good, bad}, lost)...)
	}
	if len(changes) != 1 || changes[0].Node != "bad" || changes[0].Before != Healthy || changes[0].State != Unhealthy {
		t.Errorf("changes %+v", changes)
	}
	if changes := health.Observe(healthEpoch, []PeerStatus{good}, nil); len(changes) != 0 || len(health.Peers()) != 1 {
		t.Errorf("a peer that is gone: changes %+v, peers %+v", changes, health.Peers())
	}
	health.Observe(healthEpoch, []PeerStatus{good, bad}, nil)
	if got := health.Peers()[1]; got.State != Healthy {
		t.Errorf("a peer that is back is %s", got.State)
	}
}
