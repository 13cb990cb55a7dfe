package main

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"sync"
)

// echo sends every question back as its own answer, by as many goroutines on one
// socket as the server has: what there is to be had that way from Go and the kernel.
func echo(ctx context.Context, listen string) error {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var served sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		served.Go(func() { echoFrom(conn) })
	}
	served.Wait()
	return nil
}

func echoFrom(conn *net.UDPConn) {
	const (
		header   = 12
		bits     = 2
		response = 0x80
	)
	buffer := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return // closed
		}
		if n < header {
			continue
		}
		buffer[bits] |= response
		_, _ = conn.WriteToUDPAddrPort(buffer[:n], from) // lost, as in a network
	}
}
