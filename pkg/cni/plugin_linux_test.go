package cni

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestAddAsksForWhatTheRuntimeWants(t *testing.T) {
	d := newDaemon(t, nil)
	r := newCaller(t, d, `,"mtu":1400,"runtimeConfig":{"ips":["10.0.0.9"],"mac":"02:00:00:00:00:01","dns":{"servers":["dns.example"],"searches":["default.svc"]}}`)
	r.args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u"
	if err := r.plugin.add(&r.args); err != nil {
		t.Fatal(err)
	}
	want := []shim.Request{&shim.AttachContainer{
		Handle:     &shim.LinuxNetns{ContainerID: "c", IfName: "eth0", Netns: r.args.Netns},
		JoinGlobal: true,
		Pod:        &shim.Pod{Namespace: "default", Name: "web-0", UID: "u"},
		IPs:        []netip.Addr{netip.MustParseAddr("10.0.0.9")}, MAC: "02:00:00:00:00:01", MTU: 1400, Network: "n",
	}}
	asked := d.asked()
	if handle, ok := asked[0].(*shim.AttachContainer).Handle.(*shim.LinuxNetns); !ok || handle.File == nil {
		t.Error("no namespace came with the request")
	}
	opts := cmp.Options{cmpopts.IgnoreFields(shim.LinuxNetns{}, "File"), cmpopts.EquateComparable(netip.Addr{})}
	if diff := cmp.Diff(want, asked, opts); diff != "" {
		t.Errorf("request (-want +got)\n%s", diff)
	}
}

// TestCodes gives every verb every answer that overlayd has for it.
func TestCodes(t *testing.T) {
	const prev = `,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}]},"cni.dev/valid-attachments":[]`
	verbs := []struct {
		name string
		call func(*plugin, *skel.CmdArgs) error
	}{{"ADD", (*plugin).add}, {"CHECK", (*plugin).check}, {"DEL", (*plugin).del}, {"GC", (*plugin).gc}, {"STATUS", (*plugin).status}}
	tests := []struct {
		answer shim.Code
		want   [5]uint // by verb
	}{
		{shim.CodeInvalid, [5]uint{7, 7, 7, 7, 50}},
		{shim.CodeNotFound, [5]uint{CodeDaemon, CodeChanged, CodeDaemon, CodeDaemon, 50}},
		{shim.CodeExhausted, [5]uint{CodeExhausted, CodeExhausted, CodeExhausted, CodeExhausted, 50}},
		{shim.CodeConflict, [5]uint{CodeConflict, CodeChanged, CodeConflict, CodeConflict, 50}},
		{shim.CodeUnavailable, [5]uint{11, 11, 11, 11, 50}},
		{shim.CodeUnsupported, [5]uint{CodeTooOld, CodeTooOld, CodeTooOld, CodeTooOld, 50}},
		{shim.CodeInternal, [5]uint{CodeDaemon, CodeChanged, CodeDaemon, CodeDaemon, 50}},
		{"of the future", [5]uint{CodeDaemon, CodeDaemon, CodeDaemon, CodeDaemon, 50}},
	}
	d := newDaemon(t, nil)
	r := newCaller(t, d, prev)
	for _, tt := range tests {
		d.set(func() { d.err = &shim.Error{Code: tt.answer, Message: "because"} })
		for i, verb := range verbs {
			t.Run(verb.name+" "+string(tt.answer), func(t *testing.T) {
				wantCode(t, verb.call(&r.plugin, &r.args), tt.want[i])
			})
		}
	}
	if r.stdout.Len() > 0 {
		t.Errorf("printed %q", &r.stdout)
	}
	graves, err := Tombstones(TombstoneDir(d.stateDir))
	if err != nil || len(graves) > 0 {
		t.Errorf("tombstones although overlayd was there: %v, %v", graves, err)
	}
}

func wantCode(t *testing.T, err error, code uint) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || e.Msg == "" {
		t.Errorf("error %#v, want code %d", err, code)
	}
}

func TestStatusWithoutTunnel(t *testing.T) {
	d := newDaemon(t, nil)
	r := newCaller(t, d, "")
	if err := r.plugin.status(&r.args); err != nil {
		t.Fatal(err)
	}
	d.set(func() {
		d.err = &shim.Error{Code: shim.CodeUnavailable, Message: "no tunnel"}
		d.status = &shim.StatusSnapshot{}
	})
	wantCode(t, r.plugin.status(&r.args), types.ErrLimitedConnectivity)
}

func TestCheckComparesAddresses(t *testing.T) {
	const both = `{"address":"10.0.0.9/32","interface":1},{"address":"fd00::9/128","interface":1}`
	tests := []struct {
		name, ips string
		want      uint // 0: success
	}{
		{"as attached", both, 0},
		{"with one more of a later plugin", both + `,{"address":"192.0.2.1/24","interface":1}`, 0},
		{"with another", `{"address":"10.0.0.8/32","interface":1},{"address":"fd00::9/128","interface":1}`, CodeChanged},
		{"with one missing", `{"address":"10.0.0.9/32","interface":1}`, CodeChanged},
		{"on another interface", `{"address":"10.0.0.9/32","interface":0},{"address":"fd00::9/128","interface":1}`, CodeChanged},
	}
	d := newDaemon(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newCaller(t, d, `,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"zl-host"},{"name":"eth0","sandbox":"/x"}],"ips":[`+tt.ips+`]}`)
			d.set(func() { d.attached[shim.Attachment{ContainerID: "c", IfName: "eth0"}] = attachedNine() })
			err := r.plugin.check(&r.args)
			if tt.want == 0 && err == nil {
				return
			}
			wantCode(t, err, tt.want)
		})
	}
}

func attachedNine() *shim.Attached {
	return &shim.Attached{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32"), netip.MustParsePrefix("fd00::9/128")}}
}

// TestDelMeetsAStartingDaemon is the gap between the first attempt and the
// tombstone: overlayd read the tombstones before ours was there.
func TestDelMeetsAStartingDaemon(t *testing.T) {
	d := newDaemon(t, func(d *daemon) bool {
		graves, err := Tombstones(TombstoneDir(d.stateDir))
		return err == nil && len(graves) == 0
	})
	key := shim.Attachment{ContainerID: "c", IfName: "eth0"}
	d.set(func() { d.attached[key] = &shim.Attached{} })
	r := newCaller(t, d, "")
	if err := r.plugin.del(&r.args); err != nil {
		t.Fatal(err)
	}
	if left := d.holds(); len(left) > 0 {
		t.Errorf("still attached: %v", left)
	}
	if graves, err := Tombstones(TombstoneDir(d.stateDir)); err != nil || len(graves) > 0 {
		t.Errorf("tombstones of what is done: %v, %v", graves, err)
	}
}

func TestDelWithoutDaemonIsKept(t *testing.T) {
	gone := &daemon{socket: filepath.Join(netlab.TestDir(t), "nobody.sock"), stateDir: t.TempDir()}
	r := newCaller(t, gone, "")
	if err := r.plugin.del(&r.args); err != nil {
		t.Fatal(err)
	}
	graves, err := Tombstones(TombstoneDir(gone.stateDir))
	if diff := cmp.Diff([]Tombstone{{ContainerID: "c", IfName: "eth0"}}, graves); diff != "" || err != nil {
		t.Errorf("%v, tombstones (-want +got)\n%s", err, diff)
	}
}

func TestDelThatDiesWithTheDaemonIsKept(t *testing.T) {
	d := newDaemon(t, func(*daemon) bool { return true })
	r := newCaller(t, d, "")
	if err := r.plugin.del(&r.args); err != nil {
		t.Fatal(err)
	}
	if graves, err := Tombstones(TombstoneDir(d.stateDir)); err != nil || len(graves) != 1 {
		t.Errorf("tombstones %v, %v", graves, err)
	}
}

func TestGCNamesItsNetwork(t *testing.T) {
	d := newDaemon(t, nil)
	r := newCaller(t, d, `,"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]`)
	if err := r.plugin.gc(&r.args); err != nil {
		t.Fatal(err)
	}
	want := []shim.Request{&shim.GCContainers{Network: "n", Valid: []shim.Attachment{{ContainerID: "c", IfName: "eth0"}}}}
	if diff := cmp.Diff(want, d.asked()); diff != "" {
		t.Errorf("request (-want +got)\n%s", diff)
	}
}

func TestGCWithoutListAsksNothing(t *testing.T) {
	d := newDaemon(t, nil)
	for name, extra := range map[string]string{"absent": "", "null": `,"cni.dev/valid-attachments":null`} {
		t.Run(name, func(t *testing.T) {
			r := newCaller(t, d, extra)
			if err := r.plugin.gc(&r.args); err != nil {
				t.Error(err)
			}
		})
	}
	if asked := d.asked(); len(asked) > 0 {
		t.Errorf("asked %v", asked)
	}
}

// TestDescriptorsAreReturned holds for a caller in the process, too.
func TestDescriptorsAreReturned(t *testing.T) {
	d := newDaemon(t, nil)
	r := newCaller(t, d, "")
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if err := r.plugin.add(&r.args); err != nil { // whatever is opened once
		t.Fatal(err)
	}
	before := open()
	for range 20 {
		if err := r.plugin.add(&r.args); err != nil {
			t.Fatal(err)
		}
	}
	if after := open(); after > before+5 { // the daemon's halves close a little later
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

func TestReadAll(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	const limit = 10
	refuses := func(fd uintptr, patience time.Duration, reason string) {
		t.Helper()
		_, err := readAll(int(fd), time.Now().Add(patience), limit)
		if err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("error %v, want one that says %q", err, reason)
		}
	}
	refuses(read.Fd(), 50*time.Millisecond, "no end")
	refuses(folder.Fd(), time.Minute, "directory")
	if _, err := write.WriteString("more than ten bytes"); err != nil {
		t.Fatal(err)
	}
	refuses(read.Fd(), time.Second, "more than 10 bytes")
	if _, err := write.WriteString("ten bytes!"); err != nil {
		t.Fatal(err)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(int(read.Fd()), time.Now().Add(time.Minute), limit); err != nil || string(got) != "ten bytes!" {
		t.Errorf("read %q, %v", got, err)
	}
}
