package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// queryTimeout is longer than the server waits for others.
	queryTimeout = 6 * time.Second
	// queryTries bounds how often a question goes out that may have been lost.
	queryTries = 2
	// answerSize is what an answer by UDP may have, in bytes: it passes everywhere.
	answerSize = 1232
)

// serverOf is where this node's DNS server is asked from the node itself. It
// answers the overlay alone, so that has to be one of the node's own overlay
// addresses: a packet to it comes from it, too.
func serverOf(snapshot *shim.StatusSnapshot) (netip.AddrPort, error) {
	status := snapshot.DNS
	if status == nil {
		return netip.AddrPort{}, errors.New("the daemon of this node is older than its DNS: restart it")
	}
	if !status.Enabled {
		return netip.AddrPort{}, dnsOff()
	}
	var problems []string
	for _, listener := range status.Listeners {
		if !slices.Contains(snapshot.NodeIPs, listener.Address.Addr()) {
			continue
		}
		if listener.Problem == "" {
			return listener.Address, nil
		}
		problems = append(problems, fmt.Sprintf("%s: %s", listener.Address, listener.Problem))
	}
	return netip.AddrPort{}, fmt.Errorf("DNS does not listen on the addresses of this node: %s", cmp.Or(strings.Join(problems, "; "), "the overlay is not up yet"))
}

// dnsQuery is what is asked for: one name, of one or more types.
type dnsQuery struct {
	name  string
	types []uint16
}

// parseQuery reads NAME [TYPE].
func parseQuery(args []string, zone string) (dnsQuery, error) {
	q := dnsQuery{name: absolute(args[0], zone), types: []uint16{dns.TypeA, dns.TypeAAAA}}
	if _, err := netip.ParseAddr(args[0]); err == nil {
		reverse, err := dns.ReverseAddr(args[0])
		if err != nil {
			return q, err
		}
		q = dnsQuery{name: reverse, types: []uint16{dns.TypePTR}}
	}
	if _, ok := dns.IsDomainName(q.name); !ok {
		return q, fmt.Errorf("%q is not a DNS name", args[0])
	}
	if len(args) > 1 {
		kind, err := parseType(args[1])
		if err != nil {
			return q, err
		}
		q.types = []uint16{kind}
	}
	return q, nil
}

// absolute completes a name with the zone, unless it ends with it or with a dot.
func absolute(name, zone string) string {
	lower := strings.ToLower(name)
	switch {
	case strings.HasSuffix(name, "."):
		return name
	case lower == zone, strings.HasSuffix(lower, "."+zone):
		return name + "."
	}
	return name + "." + zone + "."
}

// parseType knows the types by name, and others as TYPE65280 (RFC 3597).
func parseType(text string) (uint16, error) {
	name := strings.ToUpper(text)
	if kind, found := dns.StringToType[name]; found {
		return kind, nil
	}
	if number, found := strings.CutPrefix(name, "TYPE"); found {
		if kind, err := strconv.ParseUint(number, 10, 16); err == nil {
			return uint16(kind), nil
		}
	}
	return 0, fmt.Errorf("%q is not a type of record, such as A or SRV", text)
}

// dnsAnswer is what a server said.
type dnsAnswer struct {
	kind    uint16
	message *dns.Msg
	network string
	took    time.Duration
}

// askServer asks by UDP, and by TCP what does not fit.
func askServer(ctx context.Context, server netip.AddrPort, name string, kind uint16) (dnsAnswer, error) {
	question := new(dns.Msg).SetQuestion(name, kind)
	question.SetEdns0(answerSize, false)
	got := dnsAnswer{kind: kind, network: "udp"}
	var err error
	for range queryTries {
		if got, err = exchange(ctx, question, server, "udp"); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err == nil && got.message.Truncated {
		got, err = exchange(ctx, question, server, "tcp")
	}
	if err != nil {
		return got, fmt.Errorf("ask %s for %s %s: no answer: %w", server, name, dns.Type(kind), err)
	}
	return got, nil
}

func exchange(ctx context.Context, question *dns.Msg, server netip.AddrPort, network string) (dnsAnswer, error) {
	client := dns.Client{Net: network, Timeout: queryTimeout, UDPSize: answerSize}
	conn, err := client.DialContext(ctx, server.String())
	if err != nil {
		return dnsAnswer{}, err
	}
	// The library knows a context's deadline alone.
	hangUp := context.AfterFunc(ctx, func() { _ = conn.Close() })
	message, took, err := client.ExchangeWithConnContext(ctx, question, conn)
	if hangUp() {
		err = errors.Join(err, conn.Close())
	}
	return dnsAnswer{kind: question.Question[0].Qtype, message: message, network: network, took: took}, err
}

// text is an answer for people: what it says in one line, then its records, or
// who says that there are none.
func (a dnsAnswer) text() string {
	status := dns.RcodeToString[a.message.Rcode]
	if status == "" {
		status = fmt.Sprintf("status %d", a.message.Rcode)
	}
	source := "forwarded"
	if a.message.Authoritative {
		source = "authoritative"
	}
	records := a.message.Answer
	count := fmt.Sprintf("%d records", len(records))
	switch len(records) {
	case 0:
		count, records = "no records", a.message.Ns
	case 1:
		count = "1 record"
	}
	page := &page{}
	fmt.Fprintf(&page.text, "%s: %s, %s, %s by %s in %s\n", dns.Type(a.kind), status, source, count, a.network, roundTrip(a.took))
	var rows [][]string
	for _, record := range records {
		head := record.Header()
		rows = append(rows, []string{
			head.Name, strconv.FormatUint(uint64(head.Ttl), 10), dns.Type(head.Rrtype).String(), strings.TrimPrefix(record.String(), head.String()),
		})
	}
	if len(rows) > 0 {
		page.columns(rows)
	}
	return page.text.String()
}
