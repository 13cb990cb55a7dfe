//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// rolePrefix begins the argument by which a part of the bench runs as a process
// of its own, in a namespace of the lab: what it uses and leaves behind is then
// that part's alone. What it needs to know is a line of JSON on stdin.
const rolePrefix = "role:"

// playRole is main of such a process. It answers a line of JSON, and ends when
// stdin does.
func playRole(name string) int {
	roles := map[string]func(r *roleInput) error{
		"tunnel":    playTunnel,
		"peers":     playPeers,
		"forwarder": playForwarder,
	}
	play, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: unknown role %q\n", name)
		return 1
	}
	if err := play(&roleInput{in: bufio.NewReader(os.Stdin)}); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s: %v\n", name, err)
		return 1
	}
	return 0
}

// roleInput is stdin of a role.
type roleInput struct{ in *bufio.Reader }

// args reads what the role needs to know.
func (r *roleInput) args(into any) error {
	line, err := r.in.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, into)
}

// end waits until the role is told to end.
func (r *roleInput) end() error {
	_, err := io.Copy(io.Discard, r.in)
	return err
}

// actor is a running role.
type actor struct {
	process *cluster.Process
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	stderr  *strings.Builder
}

// startRole starts a role in a namespace and reads its first answer.
func startRole(ctx context.Context, ns *netlab.NS, role string, args, answer any) (*actor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := ns.Command(ctx, self, rolePrefix+role)
	a := &actor{stderr: &strings.Builder{}}
	cmd.Stderr = a.stderr
	if a.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.stdout = bufio.NewReader(stdout)
	if a.process, err = cluster.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	err = json.NewEncoder(a.stdin).Encode(args)
	if err == nil {
		err = a.read(answer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s does not answer: %w", role, err), a.end())
	}
	return a, nil
}

func (a *actor) read(answer any) error {
	line, err := a.stdout.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, answer)
}

func (a *actor) pid() int { return a.process.Cmd.Process.Pid }

// end tells the role to end, and waits.
func (a *actor) end() error {
	_ = a.stdin.Close() // which is the sign to end
	if err := a.process.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, a.stderr)
	}
	return nil
}

// answerRole writes a role's answer.
func answerRole(answer any) error { return json.NewEncoder(os.Stdout).Encode(answer) }
