// Package cni is the CNI plugin: it turns a runtime's ADD, DEL, CHECK, GC and
// STATUS into calls on overlayd, and the answers into results and error codes.
//
// It owns the words of the CNI specification (configuration, environment,
// results, codes) and the tombstones that DEL leaves while overlayd is away.
// It touches no network itself and keeps no state between calls. One process
// serves one call; every wait in it ends by a deadline. Tombstones may be
// written, listed and removed by any number of processes at once.
package cni

import (
	"context"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// stdinTimeout bounds the runtime's writing of the configuration.
	stdinTimeout = 30 * time.Second
	// callTimeout bounds a call that changes or checks one sandbox. It leaves
	// room below the two minutes that kubelet allows for a sandbox.
	callTimeout = 90 * time.Second
	// gcTimeout is longer, since one GC may have to remove every sandbox.
	gcTimeout = 5 * time.Minute
	// statusTimeout is less than the 5 s between two questions of kubelet.
	statusTimeout = 4 * time.Second
)

// netnsOverride is the variable by which a runtime says that CNI_NETNS may be
// the namespace that the plugin runs in.
const netnsOverride = "CNI_NETNS_OVERRIDE"

// plugin serves one call of a runtime.
type plugin struct {
	stdout io.Writer
	// protocol is the version that the runtime spoke, as far as we know.
	protocol string
	// ownNetns tells that CNI_NETNS may be the plugin's own namespace.
	ownNetns bool
}

// Main serves the CNI call that the environment and standard input describe
// and returns the process's exit status. What the runtime is to read goes to
// standard output; about goes to standard error if nothing was asked.
func Main(about string) int {
	p := &plugin{stdout: os.Stdout, protocol: version.Current()}
	command := os.Getenv("CNI_COMMAND")
	if command != "" && command != "VERSION" { // those two read nothing
		if err := takeStdin(stdinTimeout, shim.MaxFrame); err != nil {
			return p.fail(err)
		}
	}
	// skel compares CNI_NETNS with the plugin's own namespace when ADD and DEL
	// are done. We do so before an ADD, and cheaper: skel's way starts a thread.
	// A DEL it would make fail for ever, since the path of an ended process may
	// name the host's by now, and our DEL enters no namespace.
	p.ownNetns = isTrue(os.Getenv(netnsOverride))
	_ = os.Setenv(netnsOverride, "1") // fails for malformed names alone
	if e := skel.PluginMainFuncsWithError(p.funcs(), versions(), about); e != nil {
		return p.fail(e)
	}
	return 0
}

// fail tells the runtime about err and returns the exit status.
func (p *plugin) fail(err error) int {
	_ = printError(p.stdout, p.protocol, err) // the status tells, even if nobody reads
	return 1
}

func versions() version.PluginInfo { return version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0") }

func (p *plugin) funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
}

// add attaches the sandbox and prints the result. Repeated, it gives the same
// result; failed, it leaves to the runtime's DEL what overlayd may still do.
func (p *plugin) add(args *skel.CmdArgs) error {
	daemon, conf, err := p.sandboxConf(args)
	if err != nil {
		return err
	}
	sandbox, release, err := sandboxOf(args, p.ownNetns)
	if err != nil {
		return err
	}
	defer release()
	var at *shim.Attached
	err = ask(question{socket: daemon.socket, timeout: callTimeout}, func(ctx context.Context, c *shim.Client) (err error) {
		at, err = c.Attach(ctx, &shim.AttachContainer{
			Handle:     sandbox,
			JoinGlobal: true,
			Pod:        conf.pod,
			IPs:        conf.ips,
			MAC:        conf.mac.String(),
			MTU:        conf.mtu,
			Network:    conf.network,
			DNS:        conf.told,
		})
		return err
	})
	if err != nil {
		return cniError("attach sandbox", err)
	}
	return printResult(p.stdout, newResult(args, conf, at), p.protocol)
}

// check compares what is there with what ADD printed.
func (p *plugin) check(args *skel.CmdArgs) error {
	daemon, conf, err := p.sandboxConf(args)
	if err != nil {
		return err
	}
	if conf.prev == nil {
		return invalid("prevResult", "", "is needed for CHECK")
	}
	sandbox, release, err := sandboxOf(args, p.ownNetns)
	if err != nil {
		return err
	}
	defer release()
	var at *shim.Attached
	err = ask(question{socket: daemon.socket, timeout: callTimeout}, func(ctx context.Context, c *shim.Client) (err error) {
		at, err = c.Check(ctx, sandbox)
		return err
	})
	if err != nil {
		return checkError(err)
	}
	return compare(args, conf.prev, at)
}

// gc removes every attachment of this network that the runtime does not name.
// Without a list there is nothing to go by, and nothing is removed.
func (p *plugin) gc(args *skel.CmdArgs) error {
	daemon, rest, err := p.daemonConf(args)
	if err != nil {
		return err
	}
	var network string
	if err := rest.get("name", &network); err != nil {
		return err
	}
	valid, err := validAttachments(rest)
	if err != nil || valid == nil {
		return err
	}
	err = ask(question{socket: daemon.socket, timeout: gcTimeout}, func(ctx context.Context, c *shim.Client) error {
		return c.GC(ctx, network, valid)
	})
	return cniError("collect stale sandboxes", err)
}

// sandboxConf reads what ADD and CHECK need of configuration and environment.
func (p *plugin) sandboxConf(args *skel.CmdArgs) (daemonConf, netConf, error) {
	daemon, rest, err := p.daemonConf(args)
	if err != nil {
		return daemon, netConf{}, err
	}
	if err := checkIfName(args.IfName); err != nil {
		return daemon, netConf{}, err
	}
	podArgs, err := parseArgs(args.Args)
	if err != nil {
		return daemon, netConf{}, err
	}
	conf, err := parseNetConf(runtime.GOOS, daemon.cniVersion, rest, podArgs)
	return daemon, conf, err
}

// daemonConf reads what every verb needs of the configuration. From then on,
// errors are told in the version that the runtime speaks; skel has checked
// that we do.
func (p *plugin) daemonConf(args *skel.CmdArgs) (daemonConf, object, error) {
	conf, rest, err := parseConf(args.StdinData)
	if conf.cniVersion != "" {
		p.protocol = conf.cniVersion
	}
	return conf, rest, err
}

// question says how to ask overlayd.
type question struct {
	socket   string
	timeout  time.Duration // for connection and answer together
	attempts int           // to connect; 0 is shim's default
}

func ask(q question, call func(context.Context, *shim.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), q.timeout)
	defer cancel()
	client, err := shim.Dial(ctx, q.socket, shim.DialOptions{Attempts: q.attempts})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	return call(ctx, client)
}

// isTrue reads a variable as skel does.
func isTrue(value string) bool { return value == "1" || strings.EqualFold(value, "true") }
