package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// parsePrevResult decodes what the plugins before us in the chain, or our own
// ADD, printed. It refuses what the CNI library would crash on or print as
// nonsense.
func parsePrevResult(cniVersion string, raw map[string]any) (*types100.Result, error) {
	for key, value := range raw {
		list, _ := value.([]any)
		for _, element := range list {
			if element == nil {
				return nil, fmt.Errorf("%s holds null", key) // the library's converters dereference it
			}
		}
	}
	conf := types.PluginConf{CNIVersion: cniVersion, RawPrevResult: raw}
	if err := version.ParsePrevResult(&conf); err != nil {
		return nil, err
	}
	prev, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, err
	}
	for _, ip := range prev.IPs {
		if ip.Address.IP == nil {
			return nil, errors.New("an element of ips lacks its address")
		}
		// An index beyond the list would point at our interface once we append it.
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(prev.Interfaces)) {
			return nil, fmt.Errorf("address %s is on interface %d of %d", ip.Address.String(), *i, len(prev.Interfaces))
		}
	}
	for _, route := range prev.Routes {
		if route.Dst.IP == nil {
			return nil, errors.New("an element of routes lacks its dst")
		}
	}
	return prev, nil
}
