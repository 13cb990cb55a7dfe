package wireguard

import (
	"testing"
	"testing/synctest"
	"time"
)

func buffers(n int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 1400, bufferSize)
	}
	return bufs
}

func TestGateHoldsBackBeyondItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := newGate(markIn, 100), newGate(markOut, 10)
		bufs := buffers(12)
		out.enter(bufs, in)
		passed := make(chan bool, 1)
		go func() { passed <- out.wait(nil) }()
		synctest.Wait()
		select {
		case <-passed:
			t.Fatal("12 packets are inside, and the gate is open")
		default:
		}
		out.leave(bufs[:3])
		synctest.Wait()
		select {
		case <-passed:
			t.Fatal("the gate opened for a single packet")
		default:
		}
		out.leave(bufs[3:4])
		if !<-passed {
			t.Error("the gate was not stopped")
		}
		if inside := out.inside.Load(); inside != 8 {
			t.Errorf("%d inside, want 8", inside)
		}
	})
}

func TestGateStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := newGate(markIn, 1), newGate(markOut, 1)
		in.enter(buffers(2), out)
		stop := make(chan struct{})
		passed := make(chan bool, 1)
		go func() { passed <- in.wait(stop) }()
		synctest.Wait()
		close(stop)
		if <-passed {
			t.Error("wait let a packet in after stop")
		}
	})
}

// A buffer that comes back without having left was dropped inside, in either
// direction.
func TestGateNoticesDroppedPackets(t *testing.T) {
	in, out := newGate(markIn, 10), newGate(markOut, 10)
	bufs := buffers(4)
	for range 1000 {
		out.enter(bufs, in)
	}
	if inside := out.inside.Load(); inside != 4 {
		t.Errorf("%d outbound inside, want 4", inside)
	}
	in.enter(bufs[:3], out)
	if o, i := out.inside.Load(), in.inside.Load(); o != 1 || i != 3 {
		t.Errorf("%d outbound and %d inbound, want 1 and 3", o, i)
	}
	in.leave(bufs)
	out.leave(bufs)
	if o, i := out.inside.Load(), in.inside.Load(); o != 0 || i != 0 {
		t.Errorf("%d outbound and %d inbound in the end, want none", o, i)
	}
}

// Handshakes and keepalives leave without having entered.
func TestGateIgnoresWhatNeverEntered(t *testing.T) {
	in, out := newGate(markIn, 10), newGate(markOut, 10)
	out.leave([][]byte{make([]byte, 148)})
	out.leave(buffers(5))
	if inside := out.inside.Load(); inside != 0 {
		t.Errorf("%d inside, want 0", inside)
	}
	out.enter([][]byte{make([]byte, 148)}, in)
	if inside := out.inside.Load(); inside != 0 {
		t.Errorf("%d inside, want 0", inside)
	}
}

// Packets for peers that do not answer stay inside for long. They hold the
// others up once, and not again when more take their place.
func TestGateOpensAroundStuckPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := newGate(markIn, 10), newGate(markOut, 10)
		stuck := buffers(10)
		out.enter(stuck, in)
		if !out.wait(nil) { // for as long as a stall takes
			t.Fatal("stopped")
		}
		for range 100 { // peers drop their oldest packet for each new one
			out.enter(stuck[:5], in)
			if !out.open() {
				t.Fatal("the gate is shut again")
			}
		}
		moving := buffers(10)
		out.enter(moving, in)
		if out.open() {
			t.Error("the stuck packets made the gate wider for the others")
		}
		out.leave(moving)
		out.leave(stuck)
		out.enter(moving, in)
		if out.open() {
			t.Error("the gate stayed wide after nothing was stuck any more")
		}
	})
}

// A process that had no time for a while did not stall: what was inside leaves,
// and the bound is what it was.
func TestGateTakesAMistakenStallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := newGate(markIn, 10), newGate(markOut, 10)
		late := buffers(10)
		out.enter(late, in)
		if !out.wait(nil) {
			t.Fatal("stopped")
		}
		for range 100 { // the pipeline stays full all the time
			next := buffers(10)
			out.enter(next, in)
			out.leave(late)
			late = next
		}
		if inside := out.inside.Load(); inside != 10 || out.open() {
			t.Errorf("%d packets are inside, and the gate is open: %v", inside, out.open())
		}
	})
}

// Looks in vain count only while nothing leaves.
func TestGateIsPatientWithSlowFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := newGate(markIn, 10), newGate(markOut, 10)
		slow := buffers(100)
		out.enter(slow, in)
		passed := make(chan bool, 1)
		go func() { passed <- out.wait(nil) }()
		for i := range 90 {
			time.Sleep((gateStall - 1) * gateLook)
			select {
			case <-passed:
				t.Fatalf("the gate opened after %d of 100 packets", i)
			default:
			}
			out.leave(slow[i : i+1])
		}
		time.Sleep(gateLook)
		out.leave(slow[90:])
		<-passed
		if stalls := out.stalls.Load(); stalls != 0 {
			t.Errorf("%d stalls", stalls)
		}
	})
}
