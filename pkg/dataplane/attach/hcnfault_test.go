package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errInjected = errors.New("injected")

// fault makes the n-th call from now on fail, and with dead all later ones too,
// as they do for a process that is gone. hit tells whether it came to that.
type fault struct {
	after bool // the call has its effect
	dead  bool
	name  string // of the calls that count; empty is all
	dies  func() // called with the first that fails
}

func (f fault) arm(fake *fakeHCN, n int) (hit func() bool) {
	calls, done := 0, false
	hook := func(call string) error {
		if f.name != "" && f.name != call {
			return nil
		}
		if calls++; calls == n && f.dies != nil {
			f.dies()
		}
		if calls == n || f.dead && calls > n {
			done = true
			return errInjected
		}
		return nil
	}
	if !f.after {
		fake.hook(hook, nil)
		return func() bool { return done }
	}
	// What is dead does nothing more, not even silently.
	fake.hook(func(string) error {
		if f.dead && calls >= n {
			return errInjected
		}
		return nil
	}, hook)
	return func() bool { return done }
}

// eachFault runs a test for every call that may fail, until none is left; there are
// at least as many as least. A dead process writes no record either.
func eachFault(t *testing.T, dead bool, least int, run func(t *testing.T, arm func(*hcnNode) (hit func() bool)) (hit bool)) {
	for _, after := range []bool{false, true} {
		for i, hit := 1, true; hit; i++ {
			name := fmt.Sprintf("before call %d", i)
			if after {
				name = fmt.Sprintf("after call %d", i)
			}
			t.Run(name, func(t *testing.T) {
				hit = run(t, func(n *hcnNode) func() bool {
					f := fault{after: after, dead: dead}
					if dead {
						f.dies = n.kill
					}
					return f.arm(n.fake, i)
				})
			})
			if i > 30 {
				t.Fatal("no end of calls")
			}
			if !hit && i <= least {
				t.Fatalf("only %d calls could fail", i-1)
			}
		}
	}
}

// ownSpec asks for a pod for which the Attacher makes the namespace.
func ownSpec() Spec {
	spec := hcnSpec("pod", "10.42.7.2")
	spec.Namespace = ""
	return spec
}

func TestHCNFailedAttachLeavesNothing(t *testing.T) {
	eachFault(t, false, 5, func(t *testing.T, arm func(*hcnNode) func() bool) bool {
		n := newHCNNode(t)
		hit := arm(n)
		_, err := n.Attach(t.Context(), ownSpec())
		n.fake.hook(nil, nil)
		if !hit() {
			if err != nil {
				t.Fatal(err)
			}
			return false
		}
		if !errors.Is(err, errInjected) {
			t.Errorf("error %v", err)
		}
		if has := n.fake.has(); len(has) > len(left("zlayer-cni-default")) {
			t.Errorf("left: %v", has)
		}
		sameHCN(t, "record of attachments", []hcnAttachment{}, n.state.Attachments)
		if _, err := n.Attach(t.Context(), ownSpec()); err != nil {
			t.Errorf("the same again: %v", err)
		}
		return true
	})
}

func TestHCNKilledAttachLeavesNothing(t *testing.T) {
	t.Run("ids that were asked for", func(t *testing.T) { killedAttachLeaves(t, false) })
	t.Run("ids of HCN's own", func(t *testing.T) { killedAttachLeaves(t, true) })
}

func killedAttachLeaves(t *testing.T, ownIDs bool) {
	t.Helper()
	eachFault(t, true, 5, func(t *testing.T, arm func(*hcnNode) func() bool) bool {
		n := newHCNNode(t)
		n.fake.ownIDs = ownIDs
		hit := arm(n)
		_, err := n.Attach(t.Context(), ownSpec())
		n.fake.hook(nil, nil)
		if !hit() {
			return false
		}
		if err == nil {
			t.Error("attached by a dead process")
		}
		room := len(left("zlayer-cni-default"))
		if ownIDs && n.fake.count("create endpoint") == 0 {
			room++ // for a namespace: its id died with the process, and it has no name
		}
		n.restart(t)
		list, err := n.Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sameHCN(t, "list", []Attachment{}, list)
		if has := n.fake.has(); len(has) > room {
			t.Errorf("left: %v", has)
		}
		if _, err := n.Attach(t.Context(), ownSpec()); err != nil {
			t.Errorf("the same again: %v", err)
		}
		return true
	})
}

// Whatever there is at the beginning of a call is in the record, and so is what
// the call is to make.
func TestHCNRecordedBeforeUse(t *testing.T) {
	for _, ownIDs := range []bool{false, true} {
		n := newHCNNode(t)
		n.fake.ownIDs = ownIDs
		delete(n.fake.namespaces, podNamespace)
		guid := regexp.MustCompile(`"ID":"([^"]+)"`)
		n.fake.hook(func(call string) error {
			raw, err := os.ReadFile(n.cfg.State)
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(call, "list") {
				return nil // nothing was made yet
			}
			n.fake.mu.Lock()
			defer n.fake.mu.Unlock()
			ids := slices.Concat(slices.Collect(maps.Keys(n.fake.networks)), slices.Collect(maps.Keys(n.fake.endpoints)), slices.Collect(maps.Keys(n.fake.namespaces)))
			if made := guid.FindStringSubmatch(n.fake.calls[len(n.fake.calls)-1]); made != nil {
				ids = append(ids, made[1])
			}
			for _, id := range ids {
				if !strings.Contains(string(raw), id) {
					t.Errorf("%s: %s is not in the record (%v)", call, id, err)
				}
			}
			return nil
		}, nil)
		n.attachHCN(t, ownSpec())
		if err := n.Detach(t.Context(), ownSpec().Key); err != nil {
			t.Fatal(err)
		}
		if err := n.ReleaseSegment(t.Context(), "default"); err != nil {
			t.Fatal(err)
		}
	}
}

// An endpoint that is gone needs not be taken out of its namespace: HCN refuses
// that where it is not in there. Until it is gone, the refusal is told.
func TestHCNNotTakenOut(t *testing.T) {
	stay := func(calls ...string) func(string) error {
		return func(name string) error {
			if slices.Contains(calls, name) {
				return errInjected
			}
			return nil
		}
	}
	t.Run("detach", func(t *testing.T) {
		n := newHCNNode(t)
		a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		n.fake.hook(stay("remove endpoint", "delete endpoint"), nil)
		if err := n.Detach(t.Context(), a.Key); !errors.Is(err, errHCNBusy) || !strings.Contains(err.Error(), "remove endpoint") {
			t.Errorf("while the endpoint is there: %v", err)
		}
		n.fake.hook(stay("remove endpoint"), nil)
		if err := n.Detach(t.Context(), a.Key); err != nil {
			t.Fatal(err)
		}
		n.fake.hook(nil, nil)
		sameHCN(t, "record of attachments", []hcnAttachment{}, n.state.Attachments)
		n.attachHCN(t, hcnSpec("pod", "10.42.7.2")) // takes the reference out that was left
		sameHCN(t, "references", 1, len(n.fake.namespaces[podNamespace].Resources))
	})
	t.Run("undo before there is an endpoint", func(t *testing.T) {
		n := newHCNNode(t)
		n.fake.hook(stay("create endpoint"), nil)
		if _, err := n.Attach(t.Context(), hcnSpec("pod", "10.42.7.2")); !errors.Is(err, errInjected) || errors.Is(err, errHCNBusy) {
			t.Errorf("error %v", err)
		}
		sameHCN(t, "record of attachments", []hcnAttachment{}, n.state.Attachments)
	})
}

// Calls that fail while an Attach is undone leave what the next look removes.
func TestHCNFailedUndo(t *testing.T) {
	for _, call := range []string{"delete endpoint", "delete namespace"} {
		t.Run(call, func(t *testing.T) {
			n := newHCNNode(t)
			n.fake.hook(func(name string) error {
				if name == "add endpoint" || name == call {
					return errInjected
				}
				return nil
			}, nil)
			spec := ownSpec()
			if _, err := n.Attach(t.Context(), spec); !errors.Is(err, errHCNBusy) {
				t.Errorf("error %v", err)
			}
			n.fake.hook(nil, nil)
			half, found := n.Lookup(spec.Key)
			if found || half.PortIndex == 0 {
				t.Errorf("looked up %+v, %v: its addresses are not free yet", half, found)
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
			sameHCN(t, "told to Run", []Attachment{half}, n.lost)
		})
	}
}

func TestHCNFailedDetach(t *testing.T) {
	for _, call := range []string{"delete endpoint", "delete namespace"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after it %v", call, after), func(t *testing.T) {
				n, spec := newHCNNode(t), ownSpec()
				if _, err := n.Attach(t.Context(), spec); err != nil {
					t.Fatal(err)
				}
				fault{after: after, name: call}.arm(n.fake, 1)
				if err := n.Detach(t.Context(), spec.Key); !errors.Is(err, errInjected) {
					t.Errorf("error %v", err)
				}
				n.restart(t) // or the same process: the record is what counts
				if err := n.Detach(t.Context(), spec.Key); err != nil {
					t.Fatal(err)
				}
				sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
			})
		}
	}
}

// The pool of an address is that of the segment, which a Detach that did not end
// and the report of one that vanished both name.
func TestHCNWrongPoolOnRelease(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	service := netip.MustParsePrefix("10.42.200.0/28")
	if _, err := n.EnsureSegment(t.Context(), SegmentSpec{Name: "billing", Subnets: []netip.Prefix{service}}); err != nil {
		t.Fatal(err)
	}
	spec.Segment, spec.Addrs = "billing", []netip.Addr{netip.MustParseAddr("10.42.200.2")}
	if _, err := n.Attach(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	fault{name: "delete endpoint"}.arm(n.fake, 1)
	if err := n.Detach(t.Context(), spec.Key); err == nil {
		t.Fatal("detached")
	}
	n.restart(t)
	if err := n.read(); err != nil {
		t.Fatal(err)
	}
	half, _ := n.Lookup(spec.Key)
	sameHCN(t, "segment", "billing", half.Segment)
	sameHCN(t, "addresses", spec.Addrs, half.Addrs)
	other := spec
	other.Key.ContainerID = "other"
	if err := n.Reconcile(t.Context()); err != nil { // ends the Detach
		t.Fatal(err)
	}
	sameHCN(t, "told to Run", []Attachment{half}, n.lost)
	other.Segment = "default"
	if _, err := n.Attach(t.Context(), other); !errors.Is(err, ErrConflict) {
		t.Errorf("the service's address on the default segment: %v", err)
	}
	other.Segment = "billing"
	if _, err := n.Attach(t.Context(), other); err != nil {
		t.Errorf("the freed address on its own segment: %v", err)
	}
}

// A record that cannot be written fails the Attach, and takes the objects back.
func TestHCNRecordUnwritable(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	folder := filepath.Dir(n.cfg.State)
	spec.BeforeUp = func(context.Context, Attachment) error { return os.Rename(folder, folder+".away") }
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if list, err := n.Recover(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("recovered %v, %v", list, err)
	}
	spec.BeforeUp = nil
	if _, err := n.Attach(t.Context(), spec); err != nil {
		t.Error(err)
	}
}

func TestHCNHookFails(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	spec.BeforeUp = func(context.Context, Attachment) error { return errInjected }
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, errInjected) {
		t.Errorf("error %v", err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
}

// A call that hangs ends the Attach at its deadline; when HCN answers after all,
// Run removes what came of it.
func TestHCNHangingCall(t *testing.T) {
	calls := []string{"create endpoint", "create namespace", "open namespace", "add endpoint", "create network", "list networks"}
	for _, ownIDs := range []bool{false, true} {
		for _, call := range calls {
			t.Run(fmt.Sprintf("%s, ids of its own %t", call, ownIDs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n, spec := newHCNNode(t), ownSpec()
					n.fake.ownIDs = ownIDs
					if err := n.read(); err != nil {
						t.Fatal(err)
					}
					answer := n.hang(call)
					n.timesOut(t, hcnTimeout+hcnUndoTimeout, func() error { _, err := n.Attach(t.Context(), spec); return err })
					n.runUntilSettled(t, answer)
					if has := n.fake.has(); strings.Contains(strings.Join(has, "\n"), "endpoint") || len(has) > 2 {
						t.Errorf("left: %v", has)
					}
					sameHCN(t, "record of attachments", []hcnAttachment{}, n.state.Attachments)
					if _, err := n.Attach(t.Context(), spec); err != nil {
						t.Errorf("the same again: %v", err)
					}
				})
			})
		}
	}
}

// So does one of a Detach, which Run ends.
func TestHCNHangingDetach(t *testing.T) {
	for _, call := range []string{"remove endpoint", "delete endpoint", "delete namespace"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, spec := newHCNNode(t), ownSpec()
				n.attachHCN(t, spec)
				answer := n.hang(call)
				n.timesOut(t, 3*hcnTimeout, func() error { return n.Detach(t.Context(), spec.Key) })
				if _, found := n.Lookup(spec.Key); found {
					t.Error("it is attached still")
				}
				n.runUntilSettled(t, answer)
				sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
				sameHCN(t, "record of attachments", []hcnAttachment{}, n.state.Attachments)
			})
		})
	}
}

// A network whose removal hangs is nobody's until that has come back: it would go
// from under the sandboxes that it took in meanwhile.
func TestHCNHangingRelease(t *testing.T) {
	for _, byName := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n, spec := newHCNNode(t), ownSpec()
			ensure(t, n, SegmentSpec{Name: "default"})
			answer := n.hang("delete network")
			n.timesOut(t, hcnTimeout, func() error { return n.ReleaseSegment(t.Context(), "default") })
			if byName { // the record has another id
				s := n.state.Segments[0]
				s.ID, s.Leaving = newGUID(), false
				if err := n.change(func(state hcnState) (hcnState, error) { return state.withSegment(s), nil }); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			if _, err := n.Attach(t.Context(), spec); !errors.Is(err, errHCNBusy) || time.Since(start) > 0 {
				t.Errorf("attached to what is going: %v, after %v", err, time.Since(start))
			}
			n.runUntilSettled(t, answer)
			a := n.attachHCN(t, spec)
			if err := n.Check(t.Context(), a.Key, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// A look that hangs changes nothing.
func TestHCNHangingLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
		a := n.attachHCN(t, spec)
		had := n.fake.has()
		answer := n.hang("look at namespace")
		for what, do := range map[string]func() error{
			"attach again": func() error { _, err := n.Attach(t.Context(), spec); return err },
			"check":        func() error { return n.Check(t.Context(), spec.Key, nil) },
			"reconcile":    func() error { return n.Reconcile(t.Context()) },
		} {
			t.Log(what)
			n.timesOut(t, hcnTimeout, do)
		}
		n.runUntilSettled(t, answer)
		sameHCN(t, "list", []Attachment{a}, n.List())
		sameHCN(t, "objects", had, n.fake.has())
	})
}

// hang has calls of that name hang until answer is called.
func (n *hcnNode) hang(call string) (answer func()) {
	hanging := make(chan struct{})
	n.fake.hook(func(name string) error {
		if name == call {
			<-hanging
		}
		return nil
	}, nil)
	return func() {
		n.fake.hook(nil, nil)
		close(hanging)
	}
}

// timesOut checks that a call that hangs ends do.
func (*hcnNode) timesOut(t *testing.T, limit time.Duration, do func() error) {
	t.Helper()
	start, err := time.Now(), do()
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > limit {
		t.Errorf("after %v: %v", took, err)
	}
}

// runUntilSettled has Run going while what hangs gets its answer, and as long as
// it tries again.
func (n *hcnNode) runUntilSettled(t *testing.T, answer func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- n.Run(ctx, func(Attachment) {}) }()
	synctest.Wait()
	answer()
	synctest.Wait()
	<-time.After(2 * hcnTimeout) // of the bubble's clock
	synctest.Wait()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// hcsshim panics where computenetwork.dll lacks a function. That ends the call,
// and neither the process nor what comes after.
func TestHCNPanic(t *testing.T) {
	n := newHCNNode(t)
	n.fake.hook(func(name string) error {
		if name == "create endpoint" {
			panic("interface conversion")
		}
		return nil
	}, nil)
	if _, err := n.Attach(t.Context(), ownSpec()); err == nil || !strings.Contains(err.Error(), "interface conversion") {
		t.Errorf("error %v", err)
	}
	n.fake.hook(nil, nil)
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	n.attachHCN(t, ownSpec())
}

// Calls that hang do not take more threads than there are slots, and what waits
// for one ends by its deadline.
func TestHCNEverythingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late, running atomic.Int32
		calls, hang := newHCNCalls(time.Second, func() { late.Add(1) }), make(chan struct{})
		for i := range hcnPending + 3 {
			err := hcnDo(t.Context(), calls, "test", fmt.Sprint(i), func() error { running.Add(1); <-hang; return nil })
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		sameHCN(t, "running", int32(hcnPending), running.Load())
		close(hang)
		synctest.Wait()
		sameHCN(t, "told that they came back", int32(hcnPending), late.Load())
		if err := hcnDo(t.Context(), calls, "test", "0", func() error { return nil }); err != nil {
			t.Errorf("after all answered: %v", err)
		}
	})
}

// The caller going away ends the Attach at once.
func TestHCNCallerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, spec := newHCNNode(t), ownSpec()
		ctx, cancel := context.WithCancel(t.Context())
		n.fake.hook(nil, func(name string) error {
			if name == "create endpoint" {
				cancel()
			}
			return nil
		})
		if _, err := n.Attach(ctx, spec); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	})
}
