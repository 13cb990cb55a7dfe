package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
)

// hcnStub is the stand-in for computenetwork.dll that `make test-wine` builds of
// test/wine/dll/computenetwork.c. There is one in the process.
type hcnStub struct {
	*testing.T
	dll *windows.LazyDLL
}

// newHCNStub empties the stand-in. The tests skip where HCN itself answers.
func newHCNStub(t *testing.T) hcnStub {
	t.Helper()
	s := hcnStub{t, windows.NewLazySystemDLL("computenetwork.dll")}
	if err := s.dll.NewProc("StubReset").Find(); err != nil {
		t.Skipf("these are tests for make test-wine: %v", err)
	}
	s.call("StubReset")
	return s
}

func (s hcnStub) call(name string, args ...uintptr) uintptr {
	result, _, _ := s.dll.NewProc(name).Call(args...)
	return result
}

// order has the next call of that name answer with code, and a record for people.
func (s hcnStub) order(call string, code uint32, record string) {
	s.Helper()
	var texts [2]*uint16
	for i, text := range []string{call, record} {
		var err error
		if texts[i], err = windows.UTF16PtrFromString(text); err != nil {
			s.Fatal(err)
		}
	}
	s.call("StubOrder", uintptr(unsafe.Pointer(texts[0])), uintptr(code), uintptr(unsafe.Pointer(texts[1])))
}

// calls are what was called, a line for each, with numbers for ids.
func (s hcnStub) calls() string {
	text := s.call("StubCalls")
	return numberedIDs(windows.UTF16PtrToString(*(**uint16)(unsafe.Pointer(&text))))
}

// done checks that nothing is left open.
func (s hcnStub) done() {
	s.Helper()
	if n := s.call("StubHandles"); n != 0 {
		s.Errorf("%d handles are open after:\n%s", n, s.calls())
	}
}

// numberedIDs puts a number for each GUID of a text, in the order in which they
// are first there.
func numberedIDs(text string) string {
	numbers := map[string]string{}
	guid := regexp.MustCompile(`[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`)
	return guid.ReplaceAllStringFunc(text, func(id string) string {
		id = strings.ToLower(id)
		if numbers[id] == "" {
			numbers[id] = fmt.Sprintf("<%d>", len(numbers)+1)
		}
		return numbers[id]
	})
}

// worked fails the test if a call did not.
func worked[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// A network, an endpoint on it and a namespace are made, found, connected and
// removed by calls into the DLL, which get what the golden files hold.
func TestHcsshimCalls(t *testing.T) {
	s, api, documents := newHCNStub(t), hcsshim{}, hcnDocuments()
	network := worked[hcnNetwork](t)(api.CreateNetwork(documents["network-dual.json"].(hcnNetwork)))
	wanted := documents["network-dual.json"].(hcnNetwork)
	if why := network.differs(wanted); why != "" || network.ID != strings.ToUpper(wanted.ID) || network.Name != wanted.Name {
		t.Errorf("made network %+v: %s", network, why)
	}
	sameHCN(t, "networks", []hcnNetwork{network}, worked[[]hcnNetwork](t)(api.Networks()))

	endpoint := worked[hcnEndpoint](t)(api.CreateEndpoint(documents["endpoint-plain.json"].(hcnEndpoint)))
	if endpoint.MacAddress == "" || len(endpoint.IPConfigurations) != 1 || endpoint.HostComputeNamespace != "" {
		t.Errorf("made endpoint %+v", endpoint)
	}
	sameHCN(t, "endpoints", []hcnEndpoint{endpoint}, worked[[]hcnEndpoint](t)(api.Endpoints()))

	namespace := worked[hcnNamespace](t)(api.CreateNamespace(namespaceWanted(podNamespace)))
	if namespace.Type != hcnHost || namespace.Number == 0 || namespace.holds(endpoint.ID) {
		t.Errorf("made namespace %+v", namespace)
	}
	for _, step := range []struct {
		request string
		holds   bool
	}{{hcnAdd, true}, {hcnRemove, false}, {hcnAdd, true}} {
		if err := api.ModifyNamespace(podNamespace, endpointChange(step.request, endpoint.ID)); err != nil {
			t.Fatal(err)
		}
		namespace = worked[hcnNamespace](t)(api.Namespace(podNamespace))
		if namespace.holds(endpoint.ID) != step.holds {
			t.Errorf("after %s: %+v", step.request, namespace)
		}
	}
	endpoints := worked[[]hcnEndpoint](t)(api.Endpoints())
	sameHCN(t, "namespace of the endpoint", true, sameID(endpoints[0].HostComputeNamespace, podNamespace))

	if err := errors.Join(api.DeleteEndpoint(endpoint.ID), api.DeleteNamespace(podNamespace), api.DeleteNetwork(network.ID)); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "networks", []hcnNetwork{}, worked[[]hcnNetwork](t)(api.Networks()))
	sameHCN(t, "endpoints", []hcnEndpoint{}, worked[[]hcnEndpoint](t)(api.Endpoints()))
	s.done()
	hcnGolden(t, "calls-dll.txt", s.calls())
}

// Ids that nobody asked for are HCN's.
func TestHcsshimOwnIDs(t *testing.T) {
	s := newHCNStub(t)
	namespace := worked[hcnNamespace](t)(hcsshim{}.CreateNamespace(namespaceWanted("")))
	if _, err := parseGUID(namespace.ID); err != nil {
		t.Errorf("made namespace %+v: %v", namespace, err)
	}
	s.done()
}

// What HCN says of objects that are not there, are there already or are in use
// has the meaning that the algorithm goes by, and keeps its text.
func TestHcsshimRefusals(t *testing.T) {
	const absent = "99999999-9999-4999-8999-999999999999"
	api, documents := hcsshim{}, hcnDocuments()
	network, endpoint := documents["network-internal.json"].(hcnNetwork), documents["endpoint-plain.json"].(hcnEndpoint)
	lost := endpoint
	lost.HostComputeNetwork = absent
	guest := namespaceWanted("88888888-8888-4888-8888-888888888888")
	result := func(_ any, err error) error { return err }
	tests := []struct {
		name string
		call func() error
		want error // of the meanings; nil is none of them
		text string
	}{
		{"delete no network", func() error { return api.DeleteNetwork(absent) }, fs.ErrNotExist, "0x803b0001"},
		{"delete no endpoint", func() error { return api.DeleteEndpoint(absent) }, fs.ErrNotExist, "0x803b0002"},
		{"delete no namespace", func() error { return api.DeleteNamespace(absent) }, fs.ErrNotExist, "0x490"},
		{"look at no namespace", func() error { return result(api.Namespace(absent)) }, fs.ErrNotExist, absent},
		{"change no namespace", func() error { return api.ModifyNamespace(absent, endpointChange(hcnAdd, endpoint.ID)) }, fs.ErrNotExist, "0x490"},
		{"endpoint on no network", func() error { return result(api.CreateEndpoint(lost)) }, fs.ErrNotExist, "0x803b0001"},
		{"add no endpoint", func() error { return api.ModifyNamespace(podNamespace, endpointChange(hcnAdd, absent)) }, fs.ErrNotExist, "0x803b0002"},
		{"add an endpoint twice", func() error { return api.ModifyNamespace(podNamespace, endpointChange(hcnAdd, endpoint.ID)) }, fs.ErrExist, "0x803b0014"},
		{"add an endpoint of another", func() error { return api.ModifyNamespace(guest.ID, endpointChange(hcnAdd, endpoint.ID)) }, fs.ErrExist, "0x803b0014"},
		{"make a network twice", func() error { return result(api.CreateNetwork(network)) }, nil, "0x803b0010"},
		{"delete a network in use", func() error { return api.DeleteNetwork(network.ID) }, nil, "0x803b002c"},
	}
	s := newHCNStub(t)
	worked[hcnNetwork](t)(api.CreateNetwork(network))
	worked[hcnEndpoint](t)(api.CreateEndpoint(endpoint))
	worked[hcnNamespace](t)(api.CreateNamespace(namespaceWanted(podNamespace)))
	worked[hcnNamespace](t)(api.CreateNamespace(guest))
	if err := api.ModifyNamespace(podNamespace, endpointChange(hcnAdd, endpoint.ID)); err != nil {
		t.Fatal(err)
	}
	s.done()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { sameMeaning(t, tt.call(), tt.want, tt.text) })
	}
}

// Every call that fails is told, whatever it fails with; the codes that have a
// meaning have it wherever they come from.
func TestHcsshimFailures(t *testing.T) {
	codes := []struct {
		code uint32
		want error
		text string
	}{
		{0x803b0001, fs.ErrNotExist, "0x803b0001"},
		{0x803b0002, fs.ErrNotExist, "0x803b0002"},
		{0x80070490, fs.ErrNotExist, "0x490"},
		{0x803b0014, fs.ErrExist, "0x803b0014"},
		{0x803b002b, fs.ErrExist, "0x803b002b"},
		{0x803b002f, nil, "0x803b002f"},
		{0x80070057, nil, "0x57"},
		{0x80070005, nil, "0x5"},
		{0, nil, "the record of it"}, // HCN may succeed and complain
	}
	api, documents := hcsshim{}, hcnDocuments()
	network, endpoint := documents["network-internal.json"].(hcnNetwork), documents["endpoint-plain.json"].(hcnEndpoint)
	result := func(_ any, err error) error { return err }
	calls := map[string]func() error{
		"HcnEnumerateNetworks":        func() error { return result(api.Networks()) },
		"HcnQueryNetworkProperties":   func() error { return result(api.Networks()) },
		"HcnCreateNetwork":            func() error { return result(api.CreateNetwork(network)) },
		"HcnDeleteNetwork":            func() error { return api.DeleteNetwork(network.ID) },
		"HcnEnumerateEndpoints":       func() error { return result(api.Endpoints()) },
		"HcnOpenEndpoint":             func() error { return result(api.Endpoints()) },
		"HcnOpenNetwork":              func() error { return result(api.CreateEndpoint(endpoint)) },
		"HcnCreateEndpoint":           func() error { return result(api.CreateEndpoint(endpoint)) },
		"HcnQueryEndpointProperties":  func() error { return result(api.CreateEndpoint(endpoint)) },
		"HcnDeleteEndpoint":           func() error { return api.DeleteEndpoint(endpoint.ID) },
		"HcnEnumerateNamespaces":      func() error { return result(api.Namespace(podNamespace)) },
		"HcnOpenNamespace":            func() error { return result(api.Namespace(podNamespace)) },
		"HcnModifyNamespace":          func() error { return api.ModifyNamespace(podNamespace, endpointChange(hcnAdd, endpoint.ID)) },
		"HcnQueryNamespaceProperties": func() error { return result(api.Namespace(podNamespace)) },
		"HcnCreateNamespace":          func() error { return result(api.CreateNamespace(namespaceWanted(""))) },
		"HcnDeleteNamespace":          func() error { return api.DeleteNamespace(podNamespace) },
	}
	for name, call := range calls {
		for _, tt := range codes {
			t.Run(fmt.Sprintf("%s %#x", name, tt.code), func(t *testing.T) {
				s := newHCNStub(t)
				worked[hcnNamespace](t)(api.CreateNamespace(namespaceWanted(podNamespace)))
				if name != "HcnCreateNetwork" {
					worked[hcnNetwork](t)(api.CreateNetwork(network))
				}
				if name == "HcnOpenEndpoint" || name == "HcnModifyNamespace" || name == "HcnDeleteEndpoint" {
					worked[hcnEndpoint](t)(api.CreateEndpoint(endpoint))
				}
				s.order(name, tt.code, "the record of it")
				err := call()
				sameMeaning(t, err, tt.want, tt.text)
				sameMeaning(t, err, tt.want, strings.ToLower(name[:1])+name[1:])
			})
		}
	}
}

// sameMeaning checks that err is want and none of the other meanings, and says text.
func sameMeaning(t *testing.T, err, want error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one with %q", err, text)
	}
	for _, meaning := range []error{fs.ErrNotExist, fs.ErrExist} {
		if errors.Is(err, meaning) != (meaning == want) {
			t.Errorf("error %v is %v: %t", err, meaning, !(meaning == want))
		}
	}
}

// A pod comes and goes on an Attacher as the daemon makes it.
func TestAttachByHcsshim(t *testing.T) {
	s, api := newHCNStub(t), hcsshim{}
	worked[hcnNamespace](t)(api.CreateNamespace(namespaceWanted(podNamespace))) // as the runtime does
	cfg := Config{HCN: HCNConfig{
		State: filepath.Join(t.TempDir(), "hcn.json"), Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")},
		NoMasquerade: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	}}
	attacher := worked[*Attacher](t)(New(cfg))
	spec := hcnSpec("pod", "10.42.7.2")
	got := worked[Attachment](t)(attacher.Attach(t.Context(), spec))
	if got.MAC == nil || !worked[hcnNamespace](t)(api.Namespace(podNamespace)).holds(got.Port) {
		t.Errorf("attached %+v", got)
	}
	attacher = worked[*Attacher](t)(New(cfg)) // another process
	s.order("HcnOpenEndpoint", hcnEndpointNotFound, "gone between two calls")
	sameHCN(t, "attached again", got, worked[Attachment](t)(attacher.Attach(t.Context(), spec)))
	second := spec
	second.Key.ContainerID, second.Addrs = "second", []netip.Addr{netip.MustParseAddr("10.42.7.3")}
	sameHCN(t, "addresses of a second container", got.Addrs, worked[Attachment](t)(attacher.Attach(t.Context(), second)).Addrs)
	if err := attacher.Detach(t.Context(), spec.Key); err != nil {
		t.Fatal(err)
	}
	if err := attacher.ReleaseSegment(t.Context(), spec.Segment); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "networks left", []hcnNetwork{}, worked[[]hcnNetwork](t)(api.Networks()))
	sameHCN(t, "endpoints left", []hcnEndpoint{}, worked[[]hcnEndpoint](t)(api.Endpoints()))
	sameHCN(t, "resources of the runtime's namespace", []hcnResource{}, worked[hcnNamespace](t)(api.Namespace(podNamespace)).Resources)
	s.done()
}
