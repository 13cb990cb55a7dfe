package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// join asks for a sandbox of a service.
func join(t *testing.T, container string, service ServiceRequest) AttachRequest {
	t.Helper()
	req := request(t, container, container)
	req.Service = service
	return req
}

// mustAttach attaches, and returns the sandbox's first address.
func mustAttach(t *testing.T, d *Dataplane, req AttachRequest) Attachment {
	t.Helper()
	attached, err := d.Attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return attached
}

// reaches tells whether a sandbox gets an echo from an address.
func reaches(t *testing.T, container, addr string) bool {
	t.Helper()
	return exec.Command("ip", "netns", "exec", container, "ping", "-c", "1", "-W", "1", addr).Run() == nil
}

// segments are the names of the segments that are there.
func segments(d *Dataplane) []string {
	var names []string
	for _, segment := range d.current().attacher.Segments() {
		names = append(names, segment.Name)
	}
	slices.Sort(names)
	return names
}

func wantSegments(t *testing.T, d *Dataplane, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, segments(d)); diff != "" {
		t.Errorf("segments (-want +got)\n%s", diff)
	}
}

// servicesOf are the services, by name.
func servicesOf(t *testing.T, d *Dataplane) map[string]ServiceStatus {
	t.Helper()
	status, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]ServiceStatus{}
	for _, s := range status.Services {
		named[s.Name] = s
	}
	return named
}

func TestSharedServiceComesAndGoesWithItsSandboxes(t *testing.T) {
	d := newRunningPlane(t)
	web := ServiceRequest{Name: "shop/web"}
	one, two, other := join(t, "one", web), join(t, "two", web), request(t, "other", "other")
	for _, req := range []AttachRequest{one, one, two, other} { // the second time changes nothing
		mustAttach(t, d, req)
	}
	wantSegments(t, d, "default", "shop/web")
	addr := mustAttach(t, d, two).Addrs[0].String()
	for _, from := range []string{"one", "other"} {
		if !reaches(t, from, addr) {
			t.Errorf("%s does not reach a sandbox of a shared service", from)
		}
	}
	for _, step := range []struct {
		req  AttachRequest
		want []string
	}{
		{one, []string{"default", "shop/web"}},
		{two, []string{"default"}},
		{two, []string{"default"}},
	} {
		if err := d.Detach(t.Context(), step.req.Key); err != nil {
			t.Fatal(err)
		}
		wantSegments(t, d, step.want...)
	}
}

func TestServiceThatWasSetUpStaysUntilItIsTornDown(t *testing.T) {
	d := newRunningPlane(t)
	for _, mode := range []Mode{Shared, Dedicated} {
		t.Run(string(mode), func(t *testing.T) {
			first, err := d.SetupService(t.Context(), ServiceRequest{Name: "web", Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			again, err := d.SetupService(t.Context(), ServiceRequest{Name: "web", Mode: Auto})
			if err != nil || again.Bridge != first.Bridge || again.Device.PublicKey != first.Device.PublicKey || !slices.Equal(again.Blocks, first.Blocks) {
				t.Errorf("set up again: %+v, %v; want %+v", again, err, first)
			}
			req := join(t, "stays"+string(mode), ServiceRequest{Name: "web"})
			mustAttach(t, d, req)
			if err := d.Detach(t.Context(), req.Key); err != nil {
				t.Fatal(err)
			}
			wantSegments(t, d, "default", "web")
			mustAttach(t, d, req)
			for range 2 {
				if err := d.TeardownService(t.Context(), "web"); err != nil {
					t.Fatal(err)
				}
			}
			wantSegments(t, d, "default", "web") // a sandbox is left
			if err := d.Detach(t.Context(), req.Key); err != nil {
				t.Fatal(err)
			}
			wantSegments(t, d, "default")
			wantNothing(t, d)
		})
	}
}

// TestConcurrentSetUpsMakeOneSegment is about a race that gave a service several
// bridges elsewhere.
func TestConcurrentSetUpsMakeOneSegment(t *testing.T) {
	d := newRunningPlane(t)
	var wg sync.WaitGroup
	bridges := make([]string, 16)
	for i := range bridges {
		wg.Go(func() {
			mode := Shared
			if i%4 == 0 {
				mode = Dedicated
			}
			status, err := d.SetupService(t.Context(), ServiceRequest{Name: fmt.Sprintf("svc%d", i%4), Mode: mode})
			if err != nil {
				t.Error(err)
			}
			bridges[i] = status.Bridge
		})
	}
	wg.Wait()
	wantSegments(t, d, "default", "svc0", "svc1", "svc2", "svc3")
	for i, bridge := range bridges {
		if bridge != bridges[i%4] {
			t.Errorf("set-up %d got bridge %s, its first one %s", i, bridge, bridges[i%4])
		}
	}
}

func TestDedicatedServiceIsCutOffIfToldSo(t *testing.T) {
	d := newRunningPlane(t)
	other := mustAttach(t, d, request(t, "other", "other"))
	for _, tc := range []struct {
		name  string
		reach Reach
	}{{"joined", All}, {"isolated", Itself}} {
		t.Run(tc.name, func(t *testing.T) {
			service := ServiceRequest{Name: "bank/" + tc.name, Mode: Dedicated, Reach: tc.reach}
			one, two := join(t, tc.name+"1", service), join(t, tc.name+"2", service)
			mustAttach(t, d, one)
			b := mustAttach(t, d, two)
			for i, addr := range b.Addrs {
				if !reaches(t, tc.name+"1", addr.String()) {
					t.Errorf("its own sandboxes do not reach each other at %s", addr)
				}
				if got, want := reaches(t, "other", addr.String()), tc.reach == All; got != want {
					t.Errorf("another sandbox reaches %s: %t, want %t", addr, got, want)
				}
				if got, want := reaches(t, tc.name+"1", other.Addrs[i].String()), tc.reach == All; got != want {
					t.Errorf("it reaches another sandbox at %s: %t, want %t", other.Addrs[i], got, want)
				}
				if exec.Command("ping", "-c", "1", "-W", "1", addr.String()).Run() != nil {
					t.Errorf("the node does not reach its own sandbox at %s", addr)
				}
			}
			for _, req := range []AttachRequest{one, two} {
				if err := d.Detach(t.Context(), req.Key); err != nil {
					t.Fatal(err)
				}
			}
			wantSegments(t, d, "default")
		})
	}
}

func TestDedicatedServiceGrowsAndShrinksByBlocks(t *testing.T) {
	d := newRunningPlane(t)
	service := ServiceRequest{Name: "big", Mode: Dedicated}
	var reqs []AttachRequest
	for i := range 20 { // a block has 16 addresses, one of them the service's own
		req := join(t, fmt.Sprintf("big%d", i), service)
		mustAttach(t, d, req)
		reqs = append(reqs, req)
	}
	if blocks := servicesOf(t, d)["big"].Blocks; len(blocks) != 3 {
		t.Errorf("20 sandboxes have the blocks %v, want two of IPv4 and one of IPv6", blocks)
	}
	for _, req := range reqs[1:] {
		if err := d.Detach(t.Context(), req.Key); err != nil {
			t.Fatal(err)
		}
	}
	if blocks := servicesOf(t, d)["big"].Blocks; len(blocks) != 2 {
		t.Errorf("one sandbox has the blocks %v, want one of each family", blocks)
	}
	if err := d.Detach(t.Context(), reqs[0].Key); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, d)
	for _, pool := range d.current().addresses.stats() {
		if pool.Blocked != 0 {
			t.Errorf("%d addresses of %s are still in blocks", pool.Blocked, pool.Prefix)
		}
	}
}

func TestDedicatedServiceTakesTheNextPort(t *testing.T) {
	d := newRunningPlane(t)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51821})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for i, want := range []int{51822, 51823} {
		status, err := d.SetupService(t.Context(), ServiceRequest{Name: fmt.Sprintf("svc%d", i), Mode: Dedicated})
		if err != nil {
			t.Fatal(err)
		}
		if status.Device.ListenPort != want {
			t.Errorf("service %d listens on port %d, want %d", i, status.Device.ListenPort, want)
		}
	}
	// A port that was given back is the next to be taken.
	if err := errors.Join(taken.Close(), d.TeardownService(t.Context(), "svc0")); err != nil {
		t.Fatal(err)
	}
	status, err := d.SetupService(t.Context(), ServiceRequest{Name: "svc2", Mode: Dedicated})
	if err != nil || status.Device.ListenPort != 51821 {
		t.Errorf("the third service listens on port %d, %v; want 51821", status.Device.ListenPort, err)
	}
}

func TestServiceLimits(t *testing.T) {
	d := newRunningPlane(t)
	for slot := range serviceSlots { // as if so many were there
		name := fmt.Sprintf("full%d", slot)
		d.current().services.put(&service{record: serviceRecord{Name: name, Mode: Dedicated, Slot: slot + 1}})
	}
	_, err := d.SetupService(t.Context(), ServiceRequest{Name: "more", Mode: Dedicated})
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "51821 and 52076") {
		t.Errorf("service beyond the band: %v", err)
	}
	if d.current().services.get("more") != nil {
		t.Error("a refused service is left")
	}
	for slot := range serviceSlots {
		d.current().services.drop(&service{record: serviceRecord{Name: fmt.Sprintf("full%d", slot)}})
	}
	var held []string
	for i := 0; ; i++ { // a /24 holds 15 whole blocks beside the node's own address
		name := fmt.Sprintf("block%d", i)
		if _, err = d.SetupService(t.Context(), ServiceRequest{Name: name, Mode: Dedicated}); err != nil {
			break
		}
		held = append(held, name)
	}
	if !errors.Is(err, ipam.ErrExhausted) || len(held) != 15 {
		t.Errorf("after %d services: %v", len(held), err)
	}
	held = append(held, "default")
	slices.Sort(held)
	wantSegments(t, d, held...)
	if _, err := d.Attach(t.Context(), request(t, "room", "room")); err != nil {
		t.Errorf("sandbox without a service beside them: %v", err)
	}
}

func TestServiceRequestsThatAreRefused(t *testing.T) {
	d := newRunningPlane(t)
	dedicated := ServiceRequest{Name: "d", Mode: Dedicated, Reach: All}
	shared := ServiceRequest{Name: "s", Mode: Shared}
	mustAttach(t, d, join(t, "dsandbox", dedicated))
	sandbox := join(t, "ssandbox", shared)
	mustAttach(t, d, sandbox)
	before := segments(d)
	for i, tc := range []struct {
		name string
		req  ServiceRequest
		want error
	}{
		{"a mode that is none", ServiceRequest{Name: "x", Mode: "private"}, ErrInvalid},
		{"a name of 4,097 bytes", ServiceRequest{Name: strings.Repeat("x", 4097)}, ErrInvalid},
		{"shared and cut off", ServiceRequest{Name: "x", Mode: Shared, Reach: Itself}, ErrInvalid},
		{"shared, but it is dedicated", ServiceRequest{Name: "d", Mode: Shared}, ErrConflict},
		{"dedicated, but it is shared", ServiceRequest{Name: "s", Mode: Dedicated}, ErrConflict},
		{"cut off, but its sandboxes are not", ServiceRequest{Name: "d", Mode: Dedicated, Reach: Itself}, ErrConflict},
		{"cut off, but it is shared", ServiceRequest{Name: "s", Reach: Itself}, ErrConflict},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := d.Attach(t.Context(), join(t, "refused"+strconv.Itoa(i), tc.req)); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			wantSegments(t, d, before...)
		})
	}
	t.Run("the segment of those without a service", func(t *testing.T) {
		if _, err := d.SetupService(t.Context(), ServiceRequest{Name: DefaultSegment}); !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v, want ErrInvalid", err)
		}
	})
	t.Run("a sandbox of another service", func(t *testing.T) {
		sandbox.Service = dedicated
		if _, err := d.Attach(t.Context(), sandbox); !errors.Is(err, attach.ErrConflict) {
			t.Errorf("error %v, want attach.ErrConflict", err)
		}
	})
}

func TestFailedServiceLeavesNothing(t *testing.T) {
	d := newRunningPlane(t)
	fails := join(t, "fails", ServiceRequest{Name: "f", Mode: Dedicated})
	for _, point := range []string{failServiceRecorded, failServiceGuarded, failServiceUp} {
		t.Run(point, func(t *testing.T) {
			t.Setenv(failpoint.Env, point+"=error")
			if _, err := d.Attach(t.Context(), fails); err == nil {
				t.Fatal("no error")
			}
			wantSegments(t, d, "default")
			wantNothing(t, d)
			if links, err := exec.Command("ip", "-o", "link", "show").Output(); err != nil || strings.Contains(string(links), "zl-f-") {
				t.Errorf("links are left: %v\n%s", err, links)
			}
			if left, err := filepath.Glob(filepath.Join(d.cfg.StateDir, servicesDir, "*")); err != nil || len(left) > 0 {
				t.Errorf("files are left: %v, %v", left, err)
			}
		})
	}
	if _, err := d.Attach(t.Context(), fails); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// restart ends a data plane as a daemon does, and returns the next one.
func restart(t *testing.T, d *Dataplane) *Dataplane {
	t.Helper()
	return restartWith(t, d, clusterOfOne())
}

// restartWith is restart with a node set.
func restartWith(t *testing.T, d *Dataplane, set NodeSet) *Dataplane {
	t.Helper()
	if err := errors.Join(d.current().close(), d.firewall.Close()); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.parts = nil
	d.mu.Unlock()
	next, err := New(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if parts := next.current(); parts != nil {
			if err := errors.Join(parts.close(), next.firewall.Close()); err != nil {
				t.Error(err)
			}
		}
	})
	return next
}

func TestRestartKeepsServices(t *testing.T) {
	d := newRunningPlane(t)
	services := map[string]ServiceRequest{
		"joined":   {Name: "j", Mode: Dedicated, Reach: All},
		"isolated": {Name: "bank/i", Mode: Dedicated, Reach: Itself},
		"shared":   {Name: strings.Repeat("long", 1000), Mode: Shared},
		"long":     {Name: strings.Repeat("bank", 1000), Mode: Dedicated, Reach: Itself},
	}
	addr := map[string]string{}
	for container, service := range services {
		addr[container] = mustAttach(t, d, join(t, container, service)).Addrs[0].String()
		mustAttach(t, d, join(t, container+"2", service))
	}
	if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "empty", Mode: Shared}); err != nil {
		t.Fatal(err)
	}
	before := servicesOf(t, d)
	d = restart(t, d)
	after := servicesOf(t, d)
	for name, was := range before {
		is := after[name]
		if was.Fault != nil || is.Fault != nil {
			t.Errorf("service %.20s: faults %v and %v", name, was.Fault, is.Fault)
		}
		if was.Mode != is.Mode || was.Bridge != is.Bridge || was.Device.PublicKey != is.Device.PublicKey || was.Device.ListenPort != is.Device.ListenPort ||
			!slices.Equal(was.Blocks, is.Blocks) || !slices.Equal(was.Addresses, is.Addresses) || was.Sandboxes != is.Sandboxes || was.Isolated != is.Isolated {
			t.Errorf("service %.20s is %+v after a restart, before %+v", name, is, was)
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d services after a restart, before %d", len(after), len(before))
	}
	for container := range services {
		if !reaches(t, container+"2", addr[container]) {
			t.Errorf("sandboxes of the %s service do not reach each other after a restart", container)
		}
	}
	for _, isolated := range []string{"isolated", "long"} {
		if reaches(t, "joined", addr[isolated]) {
			t.Errorf("after a restart, the %s service is reached", isolated)
		}
	}
	for container := range services {
		for _, suffix := range []string{"", "2"} {
			if err := d.Detach(t.Context(), attach.Key{ContainerID: container + suffix, IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.TeardownService(t.Context(), "empty"); err != nil {
		t.Fatal(err)
	}
	wantSegments(t, d, "default")
	wantNothing(t, d)
}

// TestServiceOutlivesItsRecord removes what lies on disk: what nobody knows the
// reach of is cut off.
func TestServiceOutlivesItsRecord(t *testing.T) {
	d := newRunningPlane(t)
	service := ServiceRequest{Name: "bank/i", Mode: Dedicated, Reach: Itself}
	addr := mustAttach(t, d, join(t, "i1", service)).Addrs[0].String()
	mustAttach(t, d, join(t, "i2", service))
	mustAttach(t, d, request(t, "other", "other"))
	if err := d.current().services.store.remove("bank/i"); err != nil {
		t.Fatal(err)
	}
	d = restart(t, d)
	if !reaches(t, "i2", addr) || reaches(t, "other", addr) {
		t.Errorf("its own sandbox reaches it: %t, another: %t; want true, false", reaches(t, "i2", addr), reaches(t, "other", addr))
	}
	if got := servicesOf(t, d)["bank/i"]; got.Mode != Dedicated || !got.Isolated || got.Fault != nil {
		t.Errorf("service is %+v", got)
	}
}

// TestVanishedSandboxLeavesItsService removes a namespace instead of detaching.
func TestVanishedSandboxLeavesItsService(t *testing.T) {
	d := newRunningPlane(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	req := join(t, "vanishes", ServiceRequest{Name: "v", Mode: Dedicated})
	mustAttach(t, d, req)
	if err := req.Netns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("ip", "netns", "delete", "vanishes").Run(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); len(d.current().services.names()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the service stays without a sandbox")
		}
	}
	wantNothing(t, d)
}

// TestServiceWhoseRemovalFailsIsRemovedLater breaks a teardown at each step, and
// does it again.
func TestServiceWhoseRemovalFailsIsRemovedLater(t *testing.T) {
	d := newRunningPlane(t)
	for _, point := range ServiceFailpoints() {
		if !strings.HasPrefix(point, "service/closing") {
			continue
		}
		t.Run(point, func(t *testing.T) {
			if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "stays", Mode: Dedicated}); err != nil {
				t.Fatal(err)
			}
			t.Setenv(failpoint.Env, point+"=error")
			if err := d.TeardownService(t.Context(), "stays"); err == nil {
				t.Error("no error")
			}
			t.Setenv(failpoint.Env, "")
			if err := d.TeardownService(t.Context(), "stays"); err != nil {
				t.Error(err)
			}
			wantSegments(t, d, "default")
			wantNothing(t, d)
			wantFiles(t, d, servicesDir, 0)
			for _, pool := range d.current().addresses.stats() {
				if pool.Blocked != 0 {
					t.Errorf("%d addresses of %s are still in blocks", pool.Blocked, pool.Prefix)
				}
			}
		})
	}
}

// TestServiceKeepsItsBlocksWhenItCannotGrow lets the firewall refuse a block that
// another service gets afterwards.
func TestServiceKeepsItsBlocksWhenItCannotGrow(t *testing.T) {
	d := newRunningPlane(t)
	full := ServiceRequest{Name: "full", Mode: Dedicated, Reach: Itself}
	for i := range 14 { // the highest block lacks the broadcast address, and one is the service's own
		mustAttach(t, d, join(t, fmt.Sprintf("full%d", i), full))
	}
	before := servicesOf(t, d)["full"].Blocks
	more := join(t, "more", full)
	t.Setenv(failpoint.Env, failServiceBlocks+"=error")
	if _, err := d.Attach(t.Context(), more); err == nil {
		t.Fatal("no error")
	}
	t.Setenv(failpoint.Env, "")
	if after := servicesOf(t, d)["full"].Blocks; !slices.Equal(before, after) {
		t.Errorf("blocks %v after a refusal, before %v", after, before)
	}
	other := mustAttach(t, d, join(t, "other", ServiceRequest{Name: "other", Mode: Dedicated}))
	mustAttach(t, d, more)
	for _, block := range servicesOf(t, d)["full"].Blocks {
		if block.Contains(other.Addrs[0]) {
			t.Errorf("block %s has an address of another service, %s", block, other.Addrs[0])
		}
	}
}

// TestServiceChurnKeepsAddressesInBlocks lets sandboxes come and go at once, so
// that blocks do as well.
func TestServiceChurnKeepsAddressesInBlocks(t *testing.T) {
	d := newRunningPlane(t)
	service := ServiceRequest{Name: "churn", Mode: Dedicated, Reach: Itself}
	var reqs []AttachRequest
	for i := range 40 {
		reqs = append(reqs, join(t, fmt.Sprintf("churn%d", i), service))
	}
	all := func(do func(AttachRequest) error) {
		var wg sync.WaitGroup
		for _, req := range reqs {
			wg.Go(func() {
				if err := do(req); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	detach := func(req AttachRequest) error { return d.Detach(t.Context(), req.Key) }
	attachIn := func(req AttachRequest) error {
		attached, err := d.Attach(t.Context(), req)
		if err != nil {
			return err
		}
		blocks := d.current().services.blocks(service.Name)
		for _, addr := range attached.Addrs {
			if !slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
				return fmt.Errorf("address %s is in none of the blocks %v", addr, blocks)
			}
		}
		return nil
	}
	for range 3 {
		all(attachIn)
		all(func(req AttachRequest) error { return errors.Join(detach(req), attachIn(req)) })
		all(detach)
		wantSegments(t, d, "default")
		wantNothing(t, d)
	}
}

// TestDetachThatFailedHalfWayLeavesTheService repeats it, as runtimes do.
func TestDetachThatFailedHalfWayLeavesTheService(t *testing.T) {
	d := newRunningPlane(t)
	for _, point := range []string{"dataplane/detached", "dataplane/released"} {
		t.Run(point, func(t *testing.T) {
			req := join(t, strings.ReplaceAll(point, "/", "-"), ServiceRequest{Name: "half", Mode: Dedicated})
			mustAttach(t, d, req)
			t.Setenv(failpoint.Env, point+"=error")
			if err := d.Detach(t.Context(), req.Key); err == nil {
				t.Fatal("no error")
			}
			t.Setenv(failpoint.Env, "")
			if point == "dataplane/detached" { // it still has its address
				elsewhere := req
				elsewhere.Service = ServiceRequest{}
				if _, err := d.Attach(t.Context(), elsewhere); !errors.Is(err, ipam.ErrTaken) {
					t.Errorf("attached elsewhere with an address of the service's: %v", err)
				}
			}
			if err := d.Detach(t.Context(), req.Key); err != nil {
				t.Fatal(err)
			}
			wantSegments(t, d, "default")
			for _, pool := range d.current().addresses.stats() {
				if pool.Used > 0 || pool.Blocked > 0 {
					t.Errorf("of %s, %d addresses are used and %d in blocks", pool.Prefix, pool.Used, pool.Blocked)
				}
			}
		})
	}
}

// TestServiceMovesToAnotherPort has somebody take its port while the daemon is
// away. The node is as ready as ever.
func TestServiceMovesToAnotherPort(t *testing.T) {
	d := newRunningPlane(t)
	addr := mustAttach(t, d, join(t, "one", ServiceRequest{Name: "moves", Mode: Dedicated})).Addrs[0].String()
	mustAttach(t, d, join(t, "two", ServiceRequest{Name: "moves", Mode: Dedicated}))
	before := servicesOf(t, d)["moves"]
	if err := d.current().services.lower(); err != nil {
		t.Fatal(err)
	}
	device, err := netlink.LinkByName(before.Device.Device)
	if err == nil {
		err = netlink.LinkDel(device) // a kernel device would keep its port
	}
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.ListenUDP("udp", &net.UDPAddr{Port: before.Device.ListenPort})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	d = restart(t, d)
	after := servicesOf(t, d)["moves"]
	if after.Fault != nil || after.Device.ListenPort == before.Device.ListenPort || after.Device.PublicKey != before.Device.PublicKey {
		t.Errorf("service is %+v, want it on another port than %d", after, before.Device.ListenPort)
	}
	if waiting := d.Waiting(); len(waiting) > 0 {
		t.Errorf("the node waits for %v", waiting)
	}
	if !reaches(t, "two", addr) {
		t.Error("its sandboxes do not reach each other")
	}
	if local := d.LocalServices(); len(local) != 1 || local[0].Port != after.Device.ListenPort {
		t.Errorf("the others are told %+v", local)
	}
}

// TestServicesAreTold counts the calls that say so.
func TestServicesAreTold(t *testing.T) {
	d := newPlane(t)
	var told atomic.Int32
	d.cfg.OnServices = func() { told.Add(1) }
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	status, err := d.SetupService(t.Context(), ServiceRequest{Name: "told", Mode: Dedicated})
	if err != nil {
		t.Fatal(err)
	}
	want := []LocalService{{Name: "told", PublicKey: status.Device.PublicKey.String(), Port: 51821, Blocks: status.Blocks}}
	if local := d.LocalServices(); told.Load() == 0 || !slices.EqualFunc(local, want, LocalService.Equal) {
		t.Errorf("after %d calls the services are %+v, want %+v", told.Load(), local, want)
	}
	before := told.Load()
	if err := d.TeardownService(t.Context(), "told"); err != nil {
		t.Fatal(err)
	}
	if local := d.LocalServices(); told.Load() == before || len(local) > 0 {
		t.Errorf("after the teardown the services are %+v", local)
	}
}

func TestServicesWhoseDevicesWouldHaveOneName(t *testing.T) {
	all := newServices(t.TempDir())
	record := serviceRecord{Name: "a", Mode: Dedicated}
	if err := all.enter(&service{record: record}); err != nil {
		t.Fatal(err)
	}
	if err := all.enter(&service{record: record}); !errors.Is(err, ErrConflict) {
		t.Errorf("a second device %s: %v", serviceDevice("a"), err)
	}
}

func TestServicePortsEndWhereUDPDoes(t *testing.T) {
	d := newPlane(t)
	set := clusterOfOne()
	set.ListenPort = 65533
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	var err error
	made := 0
	for ; err == nil; made++ {
		_, err = d.SetupService(t.Context(), ServiceRequest{Name: fmt.Sprintf("svc%d", made), Mode: Dedicated})
	}
	if made != 3 || !errors.Is(err, ErrLimit) {
		t.Errorf("set-up %d failed: %v; want the third, for want of a port", made, err)
	}
}

// TestNodeWithoutFreeAddressesSaysSo has a service hold half of what there is.
func TestNodeWithoutFreeAddressesSaysSo(t *testing.T) {
	d := newPlane(t)
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/28") // blocks of four
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if _, err := d.SetupService(t.Context(), ServiceRequest{Name: name, Mode: Dedicated}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 { // of 16, 8 less the broadcast address are in blocks, one is no host's and one the node's
		if waiting := d.Waiting(); len(waiting) > 0 {
			t.Errorf("before sandbox %d: %v", i, waiting)
		}
		mustAttach(t, d, request(t, fmt.Sprintf("s%d", i), fmt.Sprintf("s%d", i)))
	}
	if waiting := d.Waiting(); len(waiting) != 1 || !strings.Contains(waiting[0], "no free address in 10.200.1.0/28") {
		t.Errorf("with no address left: %v", waiting)
	}
}
