package shim

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// introduce makes req part of what is said on every connection from now on, in
// place of an earlier one of its operation, and says it on the present one. It
// does not connect. What the daemon refuses is not kept.
func (c *Client) introduce(ctx context.Context, req Request) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	if err := c.holdDialing(ctx); err != nil {
		return fmt.Errorf("%s: %w", req.Op(), err)
	}
	defer c.releaseDialing()
	conn, err := c.current()
	if err != nil {
		return fmt.Errorf("%s: %w", req.Op(), err)
	}
	if conn != nil {
		err = c.say(ctx, conn, req)
	}
	if _, lost := errors.AsType[*lostError](err); err != nil && !lost {
		return err
	}
	// If the connection was lost meanwhile, the next one begins with req.
	c.greeting = slices.DeleteFunc(c.greeting, func(old Request) bool { return old.Op() == req.Op() })
	c.greeting = append(c.greeting, req)
	return nil
}

// greet says what comes first on a new connection; dialing must be held.
func (c *Client) greet(ctx context.Context, conn *clientConn) error {
	for _, req := range c.greeting {
		if err := c.say(ctx, conn, req); err != nil {
			return err
		}
	}
	conn.greeted.Store(true)
	return nil
}

// say asks for something on conn that is answered by *OK.
func (c *Client) say(ctx context.Context, conn *clientConn, req Request) error {
	resp, err := conn.roundTrip(ctx, c.nextID.Add(1), req)
	if failure, ok := resp.(*Error); ok {
		err = failure
	}
	if _, err = expect[*OK](resp, err); err != nil {
		return fmt.Errorf("%s: %w", req.Op(), err)
	}
	return nil
}
