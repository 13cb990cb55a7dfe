package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// guest runs `overlayd guest` in this process and returns what it wrote.
func (n *node) guest(out io.Writer, args ...string) error {
	n.t.Helper()
	cmd := newCommand(parent{out: out, log: io.Discard})
	cmd.SetArgs(append(append([]string{"guest"}, args...), "--socket", n.socket))
	return cmd.ExecuteContext(n.t.Context())
}

// withoutKeys replaces keys by their names.
func withoutKeys(text string, config *shim.GuestConfig) string {
	return strings.NewReplacer(string(config.PrivateKey), "PRIVATE-KEY-OF-THE-GUEST", config.PublicKey, "PUBLIC-KEY-OF-THE-GUEST",
		config.Peers[0].PublicKey, "PUBLIC-KEY-OF-THE-NODE").Replace(text)
}

func TestGuestCommands(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	var added, again, listed, removed, empty strings.Builder
	for _, step := range []struct {
		out  io.Writer
		args []string
	}{
		{&added, []string{"add", "Anna's laptop"}}, {&again, []string{"add", "Anna's laptop"}}, {io.Discard, []string{"add", "vm-1"}}, {&listed, []string{"list"}},
	} {
		if err := n.guest(step.out, step.args...); err != nil {
			t.Fatalf("guest %v: %v", step.args, err)
		}
	}
	config := mustCall[*shim.GuestConfig](t, n.client(), &shim.AttachContainer{Handle: &shim.GuestManaged{ID: "Anna's laptop"}, JoinGlobal: true})
	golden(t, "guest-add.txt", withoutKeys(added.String(), config))
	if added.String() != again.String() {
		t.Errorf("added again:\n%s\nbefore:\n%s", withoutKeys(again.String(), config), withoutKeys(added.String(), config))
	}
	if !strings.Contains(added.String(), "PrivateKey = "+string(config.PrivateKey)+"\n") || strings.Contains(n.log.String(), string(config.PrivateKey)) {
		t.Error("the private key is not in the configuration, or it is in the log")
	}
	golden(t, "guest-list.txt", listed.String())
	checkStatusOfGuests(t, n)
	for _, name := range []string{"Anna's laptop", "vm-1", "vm-1"} {
		if err := n.guest(&removed, "remove", name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if err := n.guest(&empty, "list"); err != nil || removed.String() != "" || strings.Count(empty.String(), "\n") != 1 {
		t.Errorf("afterwards: %v, removing said %q, listed:\n%s", err, &removed, &empty)
	}
	n.audit()
}

// checkStatusOfGuests wants the guests to be no peers among the nodes.
func checkStatusOfGuests(t *testing.T, n *node) {
	t.Helper()
	status := n.status()
	if len(status.Guests) != 2 || len(status.Peers) != 0 || status.PeerCount != 0 {
		t.Errorf("%d guests, %d peers: %+v", len(status.Guests), len(status.Peers), status)
	}
	n.audit()
}

// terminal is a pseudo-terminal: what is written to it can be read.
type terminal struct {
	*os.File
	read func() string // closes the terminal before
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan string)
	go func() {
		text, _ := io.ReadAll(master) // ends with EIO when nobody has the other side open
		written <- string(text)
	}()
	return &terminal{slave, func() string {
		if err := slave.Close(); err != nil {
			t.Error(err)
		}
		text := <-written
		if err := master.Close(); err != nil {
			t.Error(err)
		}
		return text
	}}
}

func TestGuestsQRCodeIsForTerminals(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	for _, tc := range []struct {
		name     string
		terminal bool
		args     []string
		want     bool
	}{
		{"terminal", true, nil, true},
		{"file", false, nil, false},
		{"always", false, []string{"--qr", "always"}, true},
		{"never", true, []string{"--qr=never"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var file strings.Builder
			out, read := io.Writer(&file), file.String
			if tc.terminal {
				terminal := newTerminal(t)
				out, read = terminal, terminal.read
			}
			err := n.guest(out, append([]string{"add", "vm"}, tc.args...)...)
			text := read()
			if err != nil || !strings.Contains(text, "[Interface]") {
				t.Fatalf("%v\n%d bytes without a configuration", err, len(text))
			}
			if got := strings.Contains(text, "▀") && strings.Contains(text, "█"); got != tc.want {
				t.Errorf("a QR code: %t, want %t", got, tc.want)
			}
		})
	}
	if err := n.guest(io.Discard, "add", "other", "--qr=sometimes"); err == nil || !strings.Contains(err.Error(), "--qr") {
		t.Errorf("--qr=sometimes: %v", err)
	}
	if guests := n.status().Guests; len(guests) != 1 {
		t.Errorf("guests: %+v", guests)
	}
}

func TestGuestsThatAreRefused(t *testing.T) {
	n := newSingle(t)
	write(t, n.nodes, strings.Replace(nodesFileOf([]*node{n}, nil), "  endpoint: 198.51.100.1:51820\n", "", 1))
	n.startReady()
	if err := n.guest(io.Discard, "add", "vm"); codeOfCall(err) != shim.CodeInvalid || !strings.Contains(err.Error(), "no endpoint of this node is known") {
		t.Errorf("without an endpoint: %v", err)
	}
	if guests := n.status().Guests; len(guests) > 0 {
		t.Errorf("guests: %+v", guests)
	}
}
