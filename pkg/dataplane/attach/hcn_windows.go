package attach

import (
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/Microsoft/hcsshim/hcn"
	"golang.org/x/sys/windows"
)

// hcsshim is the hcnAPI of this host: calls go to computenetwork.dll.
type hcsshim struct{}

// Networks lists all networks of the host.
func (hcsshim) Networks() ([]hcnNetwork, error) {
	list, err := hcn.ListNetworks()
	return convert[[]hcnNetwork](list, err)
}

// CreateNetwork makes a network with the id and settings of n.
func (hcsshim) CreateNetwork(n hcnNetwork) (hcnNetwork, error) {
	settings, err := convert[hcn.HostComputeNetwork](n, nil)
	if err != nil {
		return hcnNetwork{}, err
	}
	made, err := settings.Create()
	return convert[hcnNetwork](made, err)
}

// DeleteNetwork removes a network.
func (hcsshim) DeleteNetwork(id string) error {
	return wellKnown((&hcn.HostComputeNetwork{Id: id}).Delete())
}

// Endpoints lists all endpoints of the host.
func (hcsshim) Endpoints() ([]hcnEndpoint, error) {
	list, err := hcn.ListEndpoints()
	return convert[[]hcnEndpoint](list, err)
}

// CreateEndpoint makes an endpoint on its HostComputeNetwork.
func (hcsshim) CreateEndpoint(e hcnEndpoint) (hcnEndpoint, error) {
	settings, err := convert[hcn.HostComputeEndpoint](e, nil)
	if err != nil {
		return hcnEndpoint{}, err
	}
	made, err := settings.Create()
	return convert[hcnEndpoint](made, err)
}

// DeleteEndpoint removes an endpoint.
func (hcsshim) DeleteEndpoint(id string) error {
	return wellKnown((&hcn.HostComputeEndpoint{Id: id}).Delete())
}

// Namespace looks at one namespace.
func (hcsshim) Namespace(id string) (hcnNamespace, error) {
	found, err := hcn.GetNamespaceByID(id)
	return convert[hcnNamespace](found, err)
}

// CreateNamespace makes a namespace with the id and type of n.
func (hcsshim) CreateNamespace(n hcnNamespace) (hcnNamespace, error) {
	settings, err := convert[hcn.HostComputeNamespace](n, nil)
	if err != nil {
		return hcnNamespace{}, err
	}
	made, err := settings.Create()
	return convert[hcnNamespace](made, err)
}

// ModifyNamespace adds to a namespace or removes from it.
func (hcsshim) ModifyNamespace(id string, change hcnNamespaceChange) error {
	request, err := convert[hcn.ModifyNamespaceSettingRequest](change, nil)
	if err != nil {
		return err
	}
	return wellKnown(hcn.ModifyNamespaceSettings(id, &request))
}

// DeleteNamespace removes a namespace.
func (hcsshim) DeleteNamespace(id string) error {
	return wellKnown((&hcn.HostComputeNamespace{Id: id}).Delete())
}

// convert turns hcsshim's types into ours or back, which are the same in JSON.
func convert[T any](from any, err error) (T, error) {
	var to T
	if err != nil {
		return to, wellKnown(err)
	}
	raw, err := json.Marshal(from)
	if err != nil {
		return to, fmt.Errorf("convert %T: %w", from, err)
	}
	if err := json.Unmarshal(raw, &to); err != nil {
		return to, fmt.Errorf("convert %T: %w", from, err)
	}
	return to, nil
}

// wellKnown gives the errors of HCN on which the algorithm decides the meaning
// that hcnAPI promises. hcsshim's IsNotFoundError knows what its own look-ups do
// not find. HCN's codes (winerror.h, FACILITY_HCN) it does not, and of what HCN
// says not even ERROR_NOT_FOUND, which is meant to be known: its HcnError does
// not unwrap to the HcsError that is looked for (v0.14.1).
func wellKnown(err error) error {
	is := func(codes ...windows.Handle) bool {
		for _, code := range codes {
			if hcn.CheckErrorWithCode(err, hcn.ErrorCode(code)) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return nil
	case hcn.IsNotFoundError(err), hcn.IsElementNotFoundError(err), is(windows.HCN_E_NETWORK_NOT_FOUND, windows.HCN_E_ENDPOINT_NOT_FOUND):
		return fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	case is(windows.HCN_E_ENDPOINT_ALREADY_ATTACHED, windows.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS):
		return fmt.Errorf("%w: %w", err, fs.ErrExist)
	}
	return err
}
