package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// takeInventory looks at this machine. An adapter goes with its process, so that
// one that is found is another's.
func takeInventory(ctx context.Context) (inventory, error) {
	networks, endpoints, err := attach.HCNObjects(ctx)
	errs := []error{err}
	devices, err := wireguard.List(ctx)
	errs = append(errs, err)
	routes, err := wireguard.CountRefusals(ctx)
	errs = append(errs, err)
	fw, err := firewall.New(firewall.Config{})
	if err != nil {
		return nil, fmt.Errorf("look for what is ours: %w", errors.Join(append(errs, err)...))
	}
	rules, translations, err := fw.Count(ctx)
	if err := errors.Join(append(errs, err, fw.Close())...); err != nil {
		return nil, fmt.Errorf("look for what is ours: %w", err)
	}
	found := inventory{}
	for kind, n := range map[string]int{
		kindEndpoint: endpoints, kindNetwork: networks, kindDevice: len(devices), kindRoute: routes, kindRule: rules, kindNAT: translations,
	} {
		found.add(kind, n)
	}
	return found, nil
}
