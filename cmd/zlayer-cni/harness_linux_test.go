package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/audit"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// patience bounds every wait; the machine may be an emulated one.
const patience = 2 * time.Minute

// newest is the newest version of the specification that the plugin speaks.
const newest = "1.1.0"

// rig is one node with its real daemon, on which the built plugin is called.
type rig struct {
	*testing.T
	node    *cluster.Node
	cluster *cluster.Cluster
	plugin  string
}

// newRig starts a node. slices may be none: the daemon carves its own.
func newRig(t *testing.T, name string, slices ...netip.Prefix) *rig {
	t.Helper()
	netlab.NeedTunnel(t)
	plugin := netlab.Binary(t, "zlayer-cni")
	config := cluster.Config{
		Name: name + "-net", NodeNames: []string{name}, Dir: netlab.TestDir(t), Binaries: filepath.Dir(plugin),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd00:200::/48")},
	}
	if daemon := netlab.Binary(t, "overlayd"); filepath.Dir(daemon) != config.Binaries {
		t.Fatalf("plugin and daemon are in different folders: %s, %s", plugin, daemon)
	}
	if len(slices) > 0 {
		config.Slices = map[string][]netip.Prefix{name: slices}
	}
	c, err := cluster.New(config)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, node: c.Nodes[0], cluster: c, plugin: plugin}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log ends with:\n%s", r.node.LogTail())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// with returns the same node for a test within the test.
func (r *rig) with(t *testing.T) *rig {
	inner := *r
	inner.T = t
	return &inner
}

// sub runs a test within the test.
func (r *rig) sub(name string, test func(*rig)) (passed bool) {
	return r.Run(name, func(t *testing.T) { test(r.with(t)) })
}

// conf is a network configuration; nil removes a key of the usual one.
type conf map[string]any

// call is one call of the plugin. What it leaves empty is not in its
// environment or configuration.
type call struct {
	verb, id, netns, ifName string
	version                 string // of the configuration; the newest if empty
	conf                    conf   // beyond the usual keys
	env                     []string
	stdin                   *string // instead of a configuration
}

// pod is a sandbox of a test.
type pod struct {
	*netlab.NS
	id, ifName string
}

// pod makes a sandbox that is detached when the test ends.
func (r *rig) pod(id string) pod {
	r.Helper()
	p := pod{NS: netlab.TestNS(r.T, id), id: id, ifName: "eth0"}
	r.Cleanup(func() { r.ok(r.run(p.call("DEL"))) })
	return p
}

func (p pod) call(verb string) call {
	return call{verb: verb, id: p.id, netns: p.Path, ifName: p.ifName}
}

// outcome is what a call left behind.
type outcome struct {
	call           call
	status         int
	stdout, stderr string
}

// run calls the plugin in the node's namespace, as the runtime there would.
func (r *rig) run(c call) outcome {
	r.Helper()
	out, err := r.exec(r.command(), c)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// exec runs cmd as the call. It may be run from any goroutine.
func (r *rig) exec(cmd *exec.Cmd, c call) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd.Env = c.environment()
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if cmd.Stdin == nil {
		cmd.Stdin = strings.NewReader(r.stdin(c))
	}
	err := r.node.NS.Do(func() error { // a child starts in the namespace of the thread that forks
		if err := cmd.Start(); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		defer stop()
		return cmd.Wait()
	})
	if ctx.Err() != nil {
		return outcome{}, fmt.Errorf("%s of %.80s did not end in %s", c.verb, c.id, patience)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, err
	}
	return outcome{call: c, status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}, nil
}

func (c call) environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=/opt/cni/bin"}
	for key, value := range map[string]string{"CNI_COMMAND": c.verb, "CNI_CONTAINERID": c.id, "CNI_NETNS": c.netns, "CNI_IFNAME": c.ifName} {
		if value != "" {
			env = append(env, key+"="+value)
		}
	}
	return append(env, c.env...) // the last of equal names wins
}

// stdin is the configuration that the call sends.
func (r *rig) stdin(c call) string {
	if c.stdin != nil {
		return *c.stdin
	}
	all := conf{"cniVersion": c.version, "name": "checklist"}
	if c.version == "" {
		all["cniVersion"] = newest
	}
	maps.Copy(all, r.node.PluginConf())
	maps.Copy(all, c.conf)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // of the test's own making
	}
	return string(text)
}

// ok fails the test unless the call succeeded.
func (r *rig) ok(o outcome) {
	r.Helper()
	if o.status != 0 {
		r.Fatalf("%s of %.80s: exit %d\nstdout: %s\nstderr: %s", o.call.verb, o.call.id, o.status, o.stdout, o.stderr)
	}
}

// silent is ok, and nothing was printed.
func (r *rig) silent(o outcome) {
	r.Helper()
	r.ok(o)
	if o.stdout != "" || o.stderr != "" {
		r.Errorf("%s printed %q, and on stderr %q", o.call.verb, o.stdout, o.stderr)
	}
}

// failure is the error object of the specification.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// fails fails the test unless the call failed with the code and said words.
func (r *rig) fails(o outcome, code uint, words ...string) failure {
	r.Helper()
	var f failure
	r.decode(o.stdout, &f)
	if o.status == 0 || f.Code != code || f.Msg == "" || f.CNIVersion == "" {
		r.Errorf("%s of %.80s: exit %d, want a failure of code %d\nstdout: %s", o.call.verb, o.call.id, o.status, code, o.stdout)
	}
	for _, word := range words {
		if !strings.Contains(f.Msg+"; "+f.Details, word) {
			r.Errorf("%s: %q does not say %q", o.call.verb, f.Msg+"; "+f.Details, word)
		}
	}
	return f
}

// decode reads stdout, which must be one JSON value and nothing else.
func (r *rig) decode(stdout string, into any) {
	r.Helper()
	if err := json.Unmarshal([]byte(stdout), into); err != nil {
		r.Fatalf("standard output is not one JSON value: %v\n%q", err, stdout)
	}
}

// add attaches and returns the result as the library reads it.
func (r *rig) add(p pod) *types100.Result {
	r.Helper()
	return r.result(r.run(p.call("ADD")))
}

func (r *rig) result(o outcome) *types100.Result {
	r.Helper()
	r.ok(o)
	var head struct{ CNIVersion string }
	r.decode(o.stdout, &head)
	parsed, err := version.NewResult(head.CNIVersion, []byte(o.stdout))
	if err != nil {
		r.Fatalf("result: %v\n%s", err, o.stdout)
	}
	result, err := types100.NewResultFromResult(parsed)
	if err != nil {
		r.Fatalf("result: %v\n%s", err, o.stdout)
	}
	return result
}

// raw returns a result as a runtime hands it on in prevResult.
func (r *rig) raw(o outcome) map[string]any {
	r.Helper()
	r.ok(o)
	var raw map[string]any
	r.decode(o.stdout, &raw)
	return raw
}

// addresses returns those of the pod's interface.
func addresses(result *types100.Result) []string {
	var all []string
	for _, ip := range result.IPs {
		all = append(all, ip.Address.String())
	}
	slices.Sort(all)
	return all
}

// overlay returns the daemon's own view.
func (r *rig) overlay() *shim.StatusSnapshot {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	client, err := shim.Dial(ctx, r.node.Socket(), shim.DialOptions{})
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	status, err := client.Status(ctx)
	if err != nil {
		r.Fatal(err)
	}
	return status
}

// holds checks that the node has exactly these attachments, and the kernel
// exactly what belongs to them.
func (r *rig) holds(pods ...pod) {
	r.Helper()
	status := r.overlay()
	var want, got []string
	for _, p := range pods {
		want = append(want, p.id+"/"+p.ifName)
	}
	for _, a := range status.Attachments {
		got = append(got, a.ContainerID+"/"+a.IfName)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		r.Errorf("attachments %q, want %q", got, want)
	}
	if err := audit.Node(r.node.NS, *status); err != nil {
		r.Errorf("audit:\n%v", err)
	}
}

// links returns the names of a namespace's links. Their state is left out: the
// kernel updates it a little later.
func (r *rig) links(ns *netlab.NS) []string {
	r.Helper()
	handle, err := ns.Handle()
	if err != nil {
		r.Fatal(err)
	}
	defer handle.Close()
	all, err := handle.LinkList()
	if err != nil {
		r.Fatal(err)
	}
	var names []string
	for _, link := range all {
		names = append(names, link.Attrs().Name)
	}
	return names
}

// in runs a command in a namespace and returns what it printed.
func (r *rig) in(ns *netlab.NS, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// must is in for what has to succeed.
func (r *rig) must(ns *netlab.NS, name string, args ...string) string {
	r.Helper()
	out, err := r.in(ns, name, args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// eventually waits for a condition.
func (r *rig) eventually(what string, condition func() bool) {
	r.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			r.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// text returns a pointer to s.
func text(s string) *string { return &s }

// env sets one variable.
func env(key, value string) []string { return []string{key + "=" + value} }
