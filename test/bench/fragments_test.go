//go:build linux

package main

import "testing"

func TestFragmentsIn(t *testing.T) {
	const names = "Ip: Forwarding DefaultTTL ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates OutTransmits\n"
	for _, test := range []struct {
		name, snmp string
		want       int
		bad        bool
	}{
		{name: "none", snmp: names + "Ip: 1 64 0 0 0 0 0 0 0 7\nIcmp: InMsgs\nIcmp: 5\n", want: 0},
		{name: "received and made", snmp: names + "Ip: 1 64 9 4 9 9 9 9 38 9\n", want: 42},
		{name: "no values", snmp: names, bad: true},
		{name: "other fields", snmp: "Ip: Forwarding ReasmReqds\nIp: 1 4\n", bad: true},
		{name: "no number", snmp: names + "Ip: 1 64 0 x 0 0 0 0 0 7\n", bad: true},
		{name: "empty", bad: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := fragmentsIn(test.snmp)
			if got != test.want || (err != nil) != test.bad {
				t.Errorf("%d, %v, want %d, an error: %v", got, err, test.want, test.bad)
			}
		})
	}
	if _, err := countFragments(); err != nil {
		t.Errorf("this machine's own: %v", err)
	}
}
