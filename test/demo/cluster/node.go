//go:build linux

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// pollInterval is the least time between two questions whether a daemon has
// come as far as wanted.
const pollInterval = 10 * time.Millisecond

// longestRest is the longest time between them.
const longestRest = 5 * time.Second

// Node is a machine with a daemon.
type Node struct {
	// Name is the node's, and its namespace's.
	Name string
	// NS is its network namespace.
	NS *netlab.NS
	// Underlay is its own address, not one of the overlay.
	Underlay netip.Addr
	// PublicKey is its WireGuard key, known once the daemon made it.
	PublicKey string
	// Env is added to the environment of the daemons that are started from now on.
	Env []string

	dir, binaries string
	daemon        *Process
	services      []ServiceEntry // as the other nodes were told
	candidates    []string       // as they were
	relay         string         // as they were
}

// Start starts the daemon and returns when it answers.
func (n *Node) Start(ctx context.Context) error {
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start overlayd on %s: %w", n.Name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	cmd := n.NS.Command(context.WithoutCancel(ctx), n.Binary("overlayd"), "run", "--config", n.configFile())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), n.Env...)
	// Ctrl-C in a terminal must reach the lab alone, which then ends its daemons in order.
	cmd.SysProcAttr.Setpgid = true
	if n.daemon, err = Start(cmd); err != nil {
		n.daemon = nil
		return fmt.Errorf("start overlayd on %s: %w", n.Name, err)
	}
	return n.await(ctx, "answer", func(shim.StatusSnapshot) bool { return true })
}

// PID returns the daemon's process, 0 if none was started.
func (n *Node) PID() int {
	if n.daemon == nil {
		return 0
	}
	return n.daemon.Cmd.Process.Pid
}

// Stop ends the daemon with SIGTERM and waits for its orderly end.
func (n *Node) Stop(ctx context.Context) error {
	if n.daemon == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	if err := n.daemon.Cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop overlayd on %s: %w", n.Name, err)
	}
	select {
	case <-n.daemon.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop overlayd on %s: still there after SIGTERM: %w", n.Name, ctx.Err()), n.Kill())
	}
	err := n.daemon.err
	n.daemon = nil
	if err != nil {
		return fmt.Errorf("stop overlayd on %s: %w", n.Name, err)
	}
	return nil
}

// Kill ends the daemon with SIGKILL. It is fine if none runs.
func (n *Node) Kill() error {
	if n.daemon == nil {
		return nil
	}
	if err := n.daemon.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill overlayd on %s: %w", n.Name, err)
	}
	<-n.daemon.done
	n.daemon = nil
	return nil
}

// AwaitEnd waits until the daemon has ended without being told to.
func (n *Node) AwaitEnd(ctx context.Context) error {
	if n.daemon == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	select {
	case <-n.daemon.done:
		n.daemon = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("overlayd on %s still runs: %w", n.Name, ctx.Err())
	}
}

// Status asks the daemon by `overlayd status -o json`.
func (n *Node) Status(ctx context.Context) (shim.StatusSnapshot, error) {
	var status shim.StatusSnapshot
	out, err := n.overlayd(ctx, "status", "-o", "json", "--socket", n.Socket())
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return status, fmt.Errorf("read status of overlayd on %s: %w", n.Name, err)
	}
	return status, nil
}

// Teardown removes the node's data plane by `overlayd teardown`; the daemon
// must have ended.
func (n *Node) Teardown(ctx context.Context) error {
	_, err := n.overlayd(ctx, "teardown", "--config", n.configFile())
	return err
}

func (n *Node) overlayd(ctx context.Context, args ...string) ([]byte, error) {
	cmd := n.NS.Command(ctx, n.Binary("overlayd"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	process, err := Start(cmd)
	if err == nil {
		err = process.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("overlayd %s on %s: %w: %s", args[0], n.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// AwaitPeers returns when the daemon is ready and has that many peers.
func (n *Node) AwaitPeers(ctx context.Context, peers int) error {
	what := fmt.Sprintf("be ready with %d peers", peers)
	return n.await(ctx, what, func(s shim.StatusSnapshot) bool { return s.Ready && int(s.PeerCount) == peers })
}

func (n *Node) awaitKey(ctx context.Context) (shim.StatusSnapshot, error) {
	var last shim.StatusSnapshot
	err := n.await(ctx, "have a key", func(s shim.StatusSnapshot) bool {
		last = s
		return s.PublicKey != ""
	})
	return last, err
}

// await polls the daemon's status until it is as wanted.
func (n *Node) await(ctx context.Context, what string, wanted func(shim.StatusSnapshot) bool) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	running := n.daemon
	for {
		asked := time.Now()
		status, err := n.Status(ctx)
		if err == nil && wanted(status) {
			return nil
		}
		// With thousands of peers an answer takes a while, and asking all the time would
		// slow the daemon down. But a question that took long because the machine was
		// busy must not use up the rest of the time.
		rest := min(longestRest, max(pollInterval, 3*time.Since(asked)))
		select {
		case <-running.done:
			return fmt.Errorf("wait for overlayd on %s to %s: it ended (%v); its log ends with: %s", n.Name, what, running.Cmd.ProcessState, n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("wait for overlayd on %s to %s: %w: %s", n.Name, what, ctx.Err(), n.lastWords(status, err))
		case <-time.After(rest):
		}
	}
}

// lastWords says why a daemon did not come as far as wanted.
func (n *Node) lastWords(status shim.StatusSnapshot, err error) string {
	if err != nil {
		return fmt.Sprintf("%v; its log ends with: %s", err, n.LogTail())
	}
	if len(status.Waiting) > 0 {
		return strings.Join(status.Waiting, "; ")
	}
	return fmt.Sprintf("it has %d peers", status.PeerCount)
}

// LogTail returns the last lines of the daemon's log.
func (n *Node) LogTail() string {
	const lines = 8
	all := strings.Split(n.Log(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Log returns the daemon's log, or why it cannot be read.
func (n *Node) Log() string {
	text, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// Binary returns the path of one of the two binaries.
func (n *Node) Binary(name string) string { return filepath.Join(n.binaries, name) }
