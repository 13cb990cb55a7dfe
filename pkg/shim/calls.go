package shim

import (
	"context"
	"fmt"
)

// Attach puts a sandbox on a segment. For a guest use AttachGuest.
func (c *Client) Attach(ctx context.Context, req *AttachContainer) (*Attached, error) {
	return expect[*Attached](c.Call(ctx, req))
}

// AttachGuest gives a guest its place in the overlay. The request's handle is
// a *GuestManaged.
func (c *Client) AttachGuest(ctx context.Context, req *AttachContainer) (*GuestConfig, error) {
	return expect[*GuestConfig](c.Call(ctx, req))
}

// Detach removes a sandbox's attachment; one that does not exist is no error.
func (c *Client) Detach(ctx context.Context, handle Handle) error {
	return c.do(ctx, &DetachContainer{Handle: handle})
}

// Check compares an attachment with how it was made. It returns what the
// daemon would answer to Attach, or nil if the daemon does not tell.
func (c *Client) Check(ctx context.Context, handle Handle) (*Attached, error) {
	resp, err := c.Call(ctx, &CheckContainer{Handle: handle})
	if _, ok := resp.(*OK); ok {
		return nil, err
	}
	return expect[*Attached](resp, err)
}

// GC detaches every sandbox of the network that valid does not name: all of
// them if it is empty. The daemon refuses nil.
func (c *Client) GC(ctx context.Context, network string, valid []Attachment) error {
	return c.do(ctx, &GCContainers{Network: network, Valid: valid})
}

// Ready returns nil if sandboxes can be attached.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, &Ready{})
}

// Status returns the state of the overlay.
func (c *Client) Status(ctx context.Context) (*StatusSnapshot, error) {
	return expect[*StatusSnapshot](c.Call(ctx, &Status{}))
}

// Guests returns the guests of the node. A daemon without guests answers
// CodeUnsupported.
func (c *Client) Guests(ctx context.Context) ([]GuestStatus, error) {
	resp, err := expect[*Guests](c.Call(ctx, &ListGuests{}))
	if err != nil {
		return nil, err
	}
	return resp.Guests, nil
}

// Hello returns who serves. A ZLayer daemon does not know the question and
// closes the connection, which is ErrUnreachable here.
func (c *Client) Hello(ctx context.Context) (*Welcome, error) {
	return expect[*Welcome](c.Call(ctx, &Hello{ProtocolVersion: ProtocolVersion}))
}

// do asks for something that is answered by *OK.
func (c *Client) do(ctx context.Context, req Request) error {
	_, err := expect[*OK](c.Call(ctx, req))
	return err
}

// expect checks the kind of an answer.
func expect[T Response](resp Response, err error) (T, error) {
	var none T
	if err != nil {
		return none, err
	}
	answer, ok := resp.(T)
	if !ok {
		return none, fmt.Errorf("overlayd answered %s instead of %s", resp.Result(), none.Result())
	}
	return answer, nil
}
