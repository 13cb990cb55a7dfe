// Nameserver is our server of names without the daemon around it, with the zone of
// package records: a program of its own, so that its memory is that of the server.
// It serves until it is told to end.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
	"github.com/zlayer/zlayer-cni/test/bench/records"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:53", "`address` and port to listen on")
	names := flag.Int("names", 10_000, "`number` of names in the zone")
	echoes := flag.Bool("echo", false, "send questions back instead: the ceiling")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	run := func() error { return serve(ctx, *listen, *names) }
	if *echoes {
		run = func() error { return echo(ctx, *listen) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nameserver:", err)
		os.Exit(1)
	}
}

// serve answers everybody, as often as they ask.
func serve(ctx context.Context, listen string, names int) error {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	zone, err := newZone(names)
	if err != nil {
		return err
	}
	server := dns.NewServer(dns.ServerConfig{Zone: zone, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	server.SetClients([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")})
	server.SetAddresses([]netip.AddrPort{addr})
	return server.Run(ctx)
}

// newZone has the names come from pods, as in a cluster.
func newZone(names int) (*dns.Zone, error) {
	const source = "pods"
	zone, err := dns.NewZone(dns.ZoneConfig{Name: records.Zone, NegativeTTL: records.TTL * time.Second, Sources: []string{source}})
	if err != nil {
		return nil, err
	}
	owners := map[string][]dns.Entry{}
	for _, pod := range records.Pods(names) {
		owners[pod.Name] = []dns.Entry{
			{Name: pod.Name, Addrs: pod.Addrs, TTL: records.TTL * time.Second},
			{Name: pod.Service, Addrs: pod.Addrs, TTL: records.TTL * time.Second},
		}
	}
	return zone, zone.SetSource(source, owners)
}
