package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Codes of HCN (winerror.h) that the fake answers with.
const (
	hcnNetworkNotFound   = 0x803b0001
	hcnEndpointNotFound  = 0x803b0002
	hcnInvalidEndpoint   = 0x803b000c
	hcnInvalidPolicy     = 0x803b000d
	hcnInvalidPolicyType = 0x803b000e
	hcnAlreadyAttached   = 0x803b0014
	hcnHasReferences     = 0x803b002c
	hcnAddrReserved      = 0x803b002f
	hcnElementNotFound   = 0x490
	hcnInvalidParameter  = 0x57
)

// hcnError is hcsshim's HcnError as the adapter passes it on.
type hcnError struct {
	call string
	code uint32
}

func (e *hcnError) Error() string { return fmt.Sprintf("%s failed in Win32 (0x%x)", e.call, e.code) }

// Is gives the code the meaning that hcn_windows.go gives it.
func (e *hcnError) Is(target error) bool {
	switch e.code {
	case hcnNetworkNotFound, hcnEndpointNotFound, hcnElementNotFound:
		return target == fs.ErrNotExist
	case hcnAlreadyAttached:
		return target == fs.ErrExist
	}
	return false
}

// namespaceNotFoundError is hcsshim's NamespaceNotFoundError, for a look-up that
// finds nothing.
type namespaceNotFoundError struct{ id string }

func (e namespaceNotFoundError) Error() string { return fmt.Sprintf("Namespace ID %q not found", e.id) }

func (namespaceNotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// fakeHCN keeps networks, endpoints and namespaces as HCN does. It writes ids in
// upper case and IPv6 at full length, keeps references to endpoints that are gone, and refuses what HCN
// and hcsshim refuse.
type fakeHCN struct {
	mu         sync.Mutex
	networks   map[string]hcnNetwork // by id in lower case, as the others
	endpoints  map[string]hcnEndpoint
	namespaces map[string]hcnNamespace
	open       map[string]int // handles of namespaces
	calls      []string       // what was called, and what with
	// before is asked before a call has an effect, after when it has had it; their errors are the call's.
	before, after func(call string) error
	ownIDs        bool // ids that were asked for are not taken
	ownMACs       bool // hardware addresses that were asked for are not taken
	quietIDs      bool // what is made is returned without its id
	quietRoutes   bool // networks are made without their routes
}

func newFakeHCN() *fakeHCN {
	return &fakeHCN{networks: map[string]hcnNetwork{}, endpoints: map[string]hcnEndpoint{}, namespaces: map[string]hcnNamespace{}, open: map[string]int{}}
}

// call runs one call: hooks, lock, log.
func (f *fakeHCN) call(name string, with any, do func() error) error {
	f.mu.Lock()
	raw, err := json.Marshal(with)
	f.calls = append(f.calls, name+" "+string(raw))
	before, after := f.before, f.after
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if before != nil {
		if err := before(name); err != nil {
			return err
		}
	}
	f.mu.Lock()
	err = do()
	f.mu.Unlock()
	if err == nil && after != nil {
		err = after(name)
	}
	return err
}

// id is what the fake calls an object that was to be called asked.
func (f *fakeHCN) id(asked string) string {
	if asked == "" || f.ownIDs {
		asked = newGUID()
	}
	return strings.ToUpper(asked)
}

// ownSpelling writes IPv6 in settings otherwise than they came.
func ownSpelling[T any](settings T) (spelled T) {
	text := regexp.MustCompile(`"[0-9a-f:]+:[0-9a-f:]*["/]`).ReplaceAllStringFunc(string(mustJSON(settings)), func(quoted string) string {
		addr := quoted[1 : len(quoted)-1]
		return `"` + strings.ToUpper(netip.MustParseAddr(addr).StringExpanded()) + quoted[len(quoted)-1:]
	})
	if err := json.Unmarshal([]byte(text), &spelled); err != nil {
		panic(err)
	}
	return spelled
}

// told is what the fake says of the id of what it made.
func (f *fakeHCN) told(id string) string {
	if f.quietIDs {
		return ""
	}
	return id
}

func (f *fakeHCN) Networks() (list []hcnNetwork, err error) {
	err = f.call("list networks", nil, func() error {
		list = slices.SortedFunc(maps.Values(f.networks), func(a, b hcnNetwork) int { return strings.Compare(a.ID, b.ID) })
		return nil
	})
	return list, err
}

func (f *fakeHCN) CreateNetwork(n hcnNetwork) (hcnNetwork, error) {
	err := f.call("create network", n, func() error {
		for _, prefix := range n.subnets() {
			if !n.routes(prefix) {
				return errors.New("network create error, no default gateway") // hcsshim's words
			}
		}
		n.ID, n.Ipams = f.id(n.ID), ownSpelling(n.Ipams)
		if f.quietRoutes {
			n.Ipams[0].Subnets[0].Routes = nil
		}
		f.networks[strings.ToLower(n.ID)] = n
		n.ID = f.told(n.ID)
		return nil
	})
	return n, err
}

func (f *fakeHCN) DeleteNetwork(id string) error {
	return f.call("delete network", id, func() error {
		if _, found := f.networks[strings.ToLower(id)]; !found {
			return &hcnError{"hcnDeleteNetwork", hcnNetworkNotFound}
		}
		for _, e := range f.endpoints {
			if sameID(e.HostComputeNetwork, id) {
				return &hcnError{"hcnDeleteNetwork", hcnHasReferences}
			}
		}
		delete(f.networks, strings.ToLower(id))
		return nil
	})
}

func (f *fakeHCN) Endpoints() (list []hcnEndpoint, err error) {
	err = f.call("list endpoints", nil, func() error {
		list = slices.SortedFunc(maps.Values(f.endpoints), func(a, b hcnEndpoint) int { return strings.Compare(a.ID, b.ID) })
		return nil
	})
	return list, err
}

func (f *fakeHCN) CreateEndpoint(e hcnEndpoint) (hcnEndpoint, error) {
	err := f.call("create endpoint", e, func() error {
		network, found := f.networks[strings.ToLower(e.HostComputeNetwork)]
		if !found {
			return &hcnError{"hcnOpenNetwork", hcnNetworkNotFound}
		}
		if e.HostComputeNamespace != "" {
			return errors.New("endpoint create error, endpoint json HostComputeNamespace is read only and should not be set")
		}
		if err := f.checkPolicies(e); err != nil {
			return err
		}
		for _, config := range e.IPConfigurations {
			if !f.free(network, netip.MustParseAddr(config.IPAddress)) {
				return &hcnError{"hcnCreateEndpoint", hcnAddrReserved}
			}
		}
		e.IPConfigurations, e.Routes = ownSpelling(e.IPConfigurations), ownSpelling(e.Routes)
		e.ID, e.HostComputeNamespace = f.id(e.ID), hcnNoID
		if e.MacAddress == "" || f.ownMACs {
			e.MacAddress = "00-15-5D-00-00-0" + fmt.Sprint(len(f.endpoints)+1)
		}
		f.endpoints[strings.ToLower(e.ID)] = e
		e.ID = f.told(e.ID)
		return nil
	})
	return e, err
}

func (*fakeHCN) checkPolicies(e hcnEndpoint) error {
	for _, policy := range e.Policies {
		var settings struct{ Exceptions []string }
		if policy.Type != hcnOutBoundNAT {
			return &hcnError{"hcnCreateEndpoint", hcnInvalidPolicyType}
		}
		if json.Unmarshal(policy.Settings, &settings) != nil || len(settings.Exceptions) == 0 || slices.ContainsFunc(settings.Exceptions, func(text string) bool {
			return netip.MustParsePrefix(text).Addr().Is4() != netip.MustParsePrefix(settings.Exceptions[0]).Addr().Is4()
		}) {
			return &hcnError{"hcnCreateEndpoint", hcnInvalidPolicy}
		}
	}
	return nil
}

// free tells whether a network has an address to give: not without a default
// route, not the gateway's, and not twice.
func (f *fakeHCN) free(network hcnNetwork, addr netip.Addr) bool {
	subnet, found := subnetOf(network.subnets(), addr)
	if !found || !network.routes(subnet) || addr == SubnetGateway(subnet) {
		return false
	}
	for _, e := range f.endpoints {
		if e.has(addr) {
			return false
		}
	}
	return true
}

func (f *fakeHCN) DeleteEndpoint(id string) error {
	return f.call("delete endpoint", id, func() error {
		if _, found := f.endpoints[strings.ToLower(id)]; !found {
			return &hcnError{"hcnDeleteEndpoint", hcnEndpointNotFound}
		}
		delete(f.endpoints, strings.ToLower(id))
		return nil
	})
}

func (f *fakeHCN) Namespace(id string) (n hcnNamespace, err error) {
	err = f.call("look at namespace", id, func() error {
		found := false
		if n, found = f.namespaces[strings.ToLower(id)]; !found {
			return namespaceNotFoundError{id}
		}
		return nil
	})
	return n, err
}

func (f *fakeHCN) CreateNamespace(n hcnNamespace) (hcnNamespace, error) {
	err := f.call("create namespace", n, func() error {
		n.ID, n.Number = f.id(n.ID), uint32(len(f.namespaces)+2)
		f.namespaces[strings.ToLower(n.ID)] = n
		n.ID = f.told(n.ID)
		return nil
	})
	return n, err
}

func (f *fakeHCN) OpenNamespace(id string) (handle io.Closer, err error) {
	err = f.call("open namespace", id, func() error {
		if _, found := f.namespaces[strings.ToLower(id)]; !found {
			return &hcnError{"hcnOpenNamespace", hcnElementNotFound}
		}
		f.open[strings.ToLower(id)]++
		handle = fakeHandle{f, strings.ToLower(id)}
		return nil
	})
	if err != nil && handle != nil { // the answer was lost, and with it the caller
		_ = handle.Close()
	}
	return handle, err
}

// fakeHandle is a namespace that somebody has open.
type fakeHandle struct {
	fake *fakeHCN
	id   string
}

func (h fakeHandle) Close() error {
	h.fake.mu.Lock()
	defer h.fake.mu.Unlock()
	h.fake.open[h.id]--
	if h.fake.open[h.id] == 0 {
		delete(h.fake.open, h.id)
	}
	return nil
}

func (f *fakeHCN) ModifyNamespace(id string, change hcnNamespaceChange) error {
	return f.call(strings.ToLower(change.RequestType)+" endpoint", change, func() error {
		n, found := f.namespaces[strings.ToLower(id)]
		switch {
		case id == hcnNoID:
			return &hcnError{"hcnOpenNamespace", hcnInvalidParameter}
		case !found:
			return &hcnError{"hcnOpenNamespace", hcnElementNotFound}
		}
		var settings struct {
			ID string `json:"EndpointId"`
		}
		if err := json.Unmarshal(change.Settings, &settings); err != nil {
			return err
		}
		if change.RequestType == hcnRemove {
			if !n.holds(settings.ID) {
				return &hcnError{"hcnModifyNamespace", hcnInvalidEndpoint}
			}
			if e, found := f.endpoints[strings.ToLower(settings.ID)]; found {
				e.HostComputeNamespace = hcnNoID
				f.endpoints[strings.ToLower(settings.ID)] = e
			}
			n.Resources = slices.DeleteFunc(slices.Clone(n.Resources), func(r hcnResource) bool {
				return hcnNamespace{Resources: []hcnResource{r}}.holds(settings.ID)
			})
			f.namespaces[strings.ToLower(id)] = n
			return nil
		}
		return f.addEndpoint(n, settings.ID)
	})
}

func (f *fakeHCN) addEndpoint(n hcnNamespace, id string) error {
	e, found := f.endpoints[strings.ToLower(id)]
	switch {
	case !found:
		return &hcnError{"hcnModifyNamespace", hcnEndpointNotFound}
	case f.namespaces[strings.ToLower(e.HostComputeNamespace)].holds(id):
		return &hcnError{"hcnModifyNamespace", hcnAlreadyAttached}
	}
	e.HostComputeNamespace = n.ID
	f.endpoints[strings.ToLower(id)] = e
	n.Resources = append(slices.Clone(n.Resources), hcnResource{Type: hcnOfEndpoint, Data: mustJSON(map[string]string{"Id": strings.ToUpper(id)})})
	f.namespaces[strings.ToLower(n.ID)] = n
	return nil
}

func (f *fakeHCN) DeleteNamespace(id string) error {
	return f.call("delete namespace", id, func() error {
		if _, found := f.namespaces[strings.ToLower(id)]; !found {
			return &hcnError{"hcnDeleteNamespace", hcnElementNotFound}
		}
		delete(f.namespaces, strings.ToLower(id))
		return nil
	})
}

// has describes what there is, by kind and name or id, sorted; references in
// namespaces as well.
func (f *fakeHCN) has() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []string{}
	for _, n := range f.networks {
		list = append(list, "network "+n.Name)
	}
	for _, e := range f.endpoints {
		list = append(list, "endpoint "+e.Name)
	}
	for id, n := range f.namespaces {
		list = append(list, fmt.Sprintf("namespace %s with %d", id, len(n.Resources)))
	}
	for id, n := range f.open {
		list = append(list, fmt.Sprintf("namespace %s is open %d times", id, n))
	}
	slices.Sort(list)
	return list
}

// count is how often a call was made.
func (f *fakeHCN) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, call := range f.calls {
		if strings.HasPrefix(call, name+" ") {
			n++
		}
	}
	return n
}

// total is how many calls were made.
func (f *fakeHCN) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// hook replaces the hooks.
func (f *fakeHCN) hook(before, after func(call string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}
