// Package records makes the zone that the servers of the bench answer for: the
// same records for all of them, and the questions.
package records

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
)

const (
	// Zone is the zone's name, with a dot at its end.
	Zone = "overlay.local."
	// TTL is that of all records, in seconds.
	TTL = 5
	// podsEach is how many pods a service has.
	podsEach = 4
	// Missing is the part of questions whose name does not exist.
	Missing = 0.1
)

// Pod is a pod of a service; names are relative to the zone.
type Pod struct {
	Name, Service string
	// Addrs are one of IPv4 and one of IPv6.
	Addrs []netip.Addr
}

// Pods returns the pods of a zone of so many names: each fifth name is a service
// with four of them.
func Pods(names int) []Pod {
	pods := make([]Pod, names/(podsEach+1)*podsEach)
	for i := range pods {
		pods[i] = Pod{Name: podName(i), Service: serviceName(i / podsEach), Addrs: addresses(i)}
	}
	return pods
}

func serviceName(service int) string { return fmt.Sprintf("svc%d.prod.svc", service) }

func podName(pod int) string {
	return fmt.Sprintf("svc%d-%d.%s", pod/podsEach, pod%podsEach, serviceName(pod/podsEach))
}

// addresses are i of 10.0.0.0/8 and i of fd42::/64.
func addresses(i int) []netip.Addr {
	v4, v6 := [4]byte{10}, [16]byte{0: 0xfd, 1: 0x42}
	binary.BigEndian.PutUint32(v4[:], binary.BigEndian.Uint32(v4[:])|uint32(i))
	binary.BigEndian.PutUint32(v6[12:], uint32(i))
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// WriteZone writes the records as a zone file (RFC 1035, section 5).
func WriteZone(to io.Writer, pods []Pod) error {
	w := bufio.NewWriter(to)
	_, _ = fmt.Fprintf(w, "$ORIGIN %s\n$TTL %d\n@ IN SOA ns hostmaster 1 7200 1800 86400 %d\n@ IN NS ns\nns IN A 10.255.255.254\n", Zone, TTL, TTL)
	for _, pod := range pods {
		for _, name := range []string{pod.Name, pod.Service} {
			_, _ = fmt.Fprintf(w, "%s IN A %v\n%s IN AAAA %v\n", name, pod.Addrs[0], name, pod.Addrs[1])
		}
	}
	return w.Flush() // tells of all errors
}

// WriteQuestions writes n questions for dnsperf, a line each: for names that do not
// exist, and else half for services and half for pods; of A as many as of AAAA. They
// are the same at every call.
func WriteQuestions(to io.Writer, names, n int) error {
	w := bufio.NewWriter(to)
	random := rand.New(rand.NewPCG(1, 2))
	services := names / (podsEach + 1)
	for i := range n {
		name := serviceName(random.IntN(services))
		switch dice := random.Float64(); {
		case dice < Missing:
			name = fmt.Sprintf("gone%d.%s", i, name)
		case dice < (1+Missing)/2:
			name = podName(random.IntN(services * podsEach))
		}
		kind := "A"
		if random.IntN(2) == 1 {
			kind = "AAAA"
		}
		_, _ = fmt.Fprintf(w, "%s.%s %s\n", name, Zone, kind)
	}
	return w.Flush() // tells of all errors
}
