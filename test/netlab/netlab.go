//go:build linux

// Package netlab makes network namespaces that tests, the demo and the
// benchmarks use as machines.
//
// A program enters the lab once, at its start: it is executed again in user
// (unless it is root), mount and network namespaces of its own, with an empty
// /run. So nothing it does reaches the machine it runs on, an ordinary user
// may run it where user namespaces are allowed, and the kernel removes
// whatever is left when it ends. Everything else here must run inside the lab.
// Safe for concurrent use.
package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// insideEnv marks a process that already runs in the lab, and tells who entered it.
	insideEnv    = "ZLAYER_NETLAB"
	insideAsRoot = "root"
	insideAsUser = "user"
	// netnsDir is where iproute2 and container runtimes keep named namespaces.
	netnsDir = "/run/netns"
	// uapiDir is where wgctrl looks for userspace WireGuard devices.
	uapiDir = "/var/run/wireguard"
)

// Main runs the tests of m in the lab and returns their exit status. Call it
// from TestMain: os.Exit(netlab.Main(m)).
func Main(m *testing.M) int {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		return 1
	}
	return m.Run()
}

// Enter returns in the lab. Called outside, it executes the program again
// inside, waits for it, and exits with its status. It must be the first thing
// a program does, since all that ran before runs twice.
//
// An ordinary user needs user namespaces (sysctl
// kernel.unprivileged_userns_clone or an AppArmor profile may forbid them).
func Enter() error {
	runIfNodeProcess()
	if os.Getenv(insideEnv) != "" {
		return furnish()
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	who := insideAsRoot
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		who = insideAsUser
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd.Env = append(os.Environ(), insideEnv+"="+who)
	return waitAndExit(cmd)
}

// waitAndExit passes signals on to the child, so that the terminal's Ctrl-C
// gives it time to clean up.
func waitAndExit(cmd *exec.Cmd) error {
	runtime.LockOSThread() // Pdeathsig follows the thread that starts the child
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("enter namespaces (root, or a user whom the system lets create user namespaces, is needed): %w", err)
	}
	go func() {
		for s := range signals {
			if s != syscall.SIGINT { // the terminal signals the whole process group itself
				_ = cmd.Process.Signal(s)
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		os.Exit(exit.ExitCode())
	}
	return err
}

// furnish makes the new namespaces habitable: mounts stay private, /run is
// empty and writable, loopback is up.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount an empty /run: %w", err)
	}
	// A fresh sysfs shows this namespace's links. A container may forbid it, and only people looking around miss it.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "")
	for _, dir := range []string{netnsDir, uapiDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare lab: %w", err)
		}
	}
	return loopbackUp()
}

// loopbackUp brings lo up in the calling thread's namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// onThread runs fn on an operating system thread of its own that has joined
// the network namespace ns, and ends that thread rather than trusting a way
// back.
func onThread(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("join network namespace %s: %w", ns.Name(), err)
			return
		}
		done <- fn()
	}()
	return <-done
}

func threadNetns() string {
	return "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"
}
