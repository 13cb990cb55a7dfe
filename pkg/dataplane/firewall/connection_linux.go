package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds a netlink exchange whose context has no deadline. The kernel
// answers in milliseconds; this is for machines that are emulated or drowning.
const patience = 30 * time.Second

// dumpAttempts: a dump that others' changes interrupted may lack something. Ours
// fit into few packets, so that is rare and the next attempt succeeds.
const dumpAttempts = 20

// transactionSize is how large a transaction we ask the socket to take: 20,000
// prefixes and 1,000 pods. Without CAP_NET_ADMIN on the machine itself, as in a
// user namespace, the kernel gives less (twice net.core.wmem_max, by default
// 416 KiB: 5,000 prefixes and 1,000 pods).
const transactionSize = 2 << 20

// answersSize holds the acknowledgements of a transaction, some 1 KiB for each of
// its messages, which all come at once. Both tables from nothing are about 200
// messages; the 208 KiB of a socket's default would lose some, after the kernel
// has committed.
const answersSize = 1 << 20

// A connection is one netlink socket, opened when first needed and again after
// an error: answers to what failed may still be in it, and requests that were
// queued for the same transaction. Not safe for concurrent use.
type connection struct {
	netns    int
	attempts int            // how often a dump that was interrupted is begun
	nft      *nftables.Conn // nil while closed; speaks over raw
	raw      *netlink.Conn
}

// open makes the connection usable until ctx's deadline.
func (c *connection) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.nft == nil {
		keep := func(raw *netlink.Conn) error { c.raw = raw; return nil }
		nft, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(c.netns), nftables.WithSockOptions(keep))
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		c.nft = nft
		if err := c.raw.SetWriteBuffer(transactionSize); err != nil {
			return fmt.Errorf("enlarge netlink buffer: %w", err)
		}
		if err := c.raw.SetReadBuffer(answersSize); err != nil {
			return fmt.Errorf("enlarge netlink buffer for answers: %w", err)
		}
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(patience)
	}
	if err := c.raw.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set netlink deadline: %w", err)
	}
	return nil
}

func (c *connection) close() error {
	if c.nft == nil {
		return nil
	}
	err := c.nft.CloseLasting()
	c.nft, c.raw = nil, nil
	return err
}

// use runs fn on the open connection, and closes it if fn fails.
func (c *connection) use(ctx context.Context, fn func(*nftables.Conn) error) error {
	err := c.open(ctx)
	if err == nil {
		err = fn(c.nft)
	}
	if err != nil {
		return errors.Join(err, c.close())
	}
	return nil
}

// request asks for one object of nf_tables or, with the flag Dump, for all.
func (c *connection) request(kind uint16, family nftables.TableFamily, flags netlink.HeaderFlags, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	header := []byte{byte(family), unix.NFNETLINK_V0, 0, 0}
	for range c.attempts {
		replies, err := c.raw.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
				Flags: netlink.Request | flags,
			},
			Data: append(header, body...),
		})
		if err != nil || !slices.ContainsFunc(replies, interrupted) {
			return replies, err
		}
	}
	return nil, fmt.Errorf("netlink dump interrupted %d times", c.attempts)
}

func interrupted(m netlink.Message) bool { return m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 }

func text(kind uint16, value string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(value), 0)}
}
