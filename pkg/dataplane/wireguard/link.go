package wireguard

import (
	"fmt"
	"math"
	"strconv"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// Alias marks a link as this package's device for the cluster's network.
const Alias = linkalias.Mark + " device=cluster"

const (
	serviceAlias = linkalias.Mark + " device=service name="
	tableWord    = " table="
	// maxServiceName is the longest name of a service in bytes.
	maxServiceName = 4096
	// localTable and the two below it are the kernel's own: local, main and
	// default.
	localTable = 255
	// maxTable is the highest number of a routing table.
	maxTable = math.MaxUint32
)

// Link names a device of ours as the kernel has it: the cluster's, or that of
// one service.
type Link struct {
	// Name is the link's name.
	Name string
	// Service is empty for the cluster's device. In what List returns, a digest
	// stands for a name too long for the link's alias; see Of.
	Service string
	// Table is the routing table of the service's peers, 0 for the cluster's
	// device: the main table.
	Table int
	// Unfinished tells a link whose maker died before it said whose it is.
	Unfinished bool
}

// Of tells whether the link is the device of the service, or the cluster's
// device if service is empty.
func (l Link) Of(service string) bool {
	return !l.Unfinished && serviceWord(l.Service) == serviceWord(service)
}

// alias is what the link's alias says:
//
//	zlayer/1 device=cluster
//	zlayer/1 device=service name=NAME table=NUMBER
//
// The name is escaped like a URL, and gives way to its digest where the alias
// would be too long. It decides whose link it is.
func (l Link) alias() string {
	if l.Service == "" {
		return Alias
	}
	return serviceAlias + linkalias.Escape(serviceWord(l.Service)) + tableWord + strconv.Itoa(l.Table)
}

// serviceWord is the service as an alias names it.
func serviceWord(service string) string {
	if len(serviceAlias)+len(linkalias.Escape(service))+len(tableWord)+len(strconv.Itoa(maxTable)) > linkalias.Max {
		return linkalias.Digest(service)
	}
	return service
}

// parseAlias reads what alias wrote, without the link's name. Words that it does
// not know are skipped.
func parseAlias(alias string) (Link, error) {
	if alias == Alias {
		return Link{}, nil
	}
	words, err := linkalias.Words(alias)
	if err != nil {
		return Link{}, err
	}
	link := Link{Service: words["name"]}
	if words["device"] != "service" || link.Service == "" {
		return Link{}, fmt.Errorf("alias %q names no device", alias)
	}
	table, err := strconv.ParseUint(words["table"], 10, 32)
	if err != nil {
		return Link{}, fmt.Errorf("alias %q: %w", alias, err)
	}
	link.Table = int(table)
	return link, link.check()
}

// check refuses a service without a table of its own, which the removal of its
// device would empty, and a table for the cluster's device.
func (l Link) check() error {
	switch {
	case len(l.Service) > maxServiceName:
		return fmt.Errorf("service name of %d bytes is longer than %d", len(l.Service), maxServiceName)
	case l.Service == "" && l.Table != 0:
		return fmt.Errorf("table %d for the cluster's device, which uses the main table", l.Table)
	case l.Service != "" && (l.Table < 1 || l.Table > maxTable || l.Table >= localTable-2 && l.Table <= localTable):
		return fmt.Errorf("table %d is none that a service can have for itself", l.Table)
	}
	return nil
}
