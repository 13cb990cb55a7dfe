package firewall

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// A table is one of our two tables as it should be.
type table struct {
	family   nftables.TableFamily
	name     string
	counters []string
	sets     []set
	chains   []chain
}

type set struct {
	name     string
	key      nftables.SetDatatype
	interval bool
	// ranges says that the intervals are of concatenated keys. The kernel holds
	// each as one element, and each field by its own.
	ranges   bool
	elements []element
}

// A chain with a hook is called by the kernel, one without by other chains.
type chain struct {
	name  string
	hook  *hook
	rules []rule
}

type hook struct {
	kind     nftables.ChainType
	number   *nftables.ChainHook
	priority *nftables.ChainPriority
}

type rule []expr.Any

// wantedTables returns both tables for the given rules and pins.
func wantedTables(name string, r Rules, pins map[int]Pin) []table {
	p := collect(pins)
	return []table{inetTable(name, r, p), bridgeTable(name, r, p)}
}

// pinned holds the elements of all pins.
type pinned struct{ ports, sources4, sources6 []element }

func collect(pins map[int]Pin) pinned {
	var all pinned
	for _, p := range pins {
		port, four, six := elementsOf(p)
		all.ports = append(all.ports, port...)
		all.sources4 = append(all.sources4, four...)
		all.sources6 = append(all.sources6, six...)
	}
	return all
}

// pinTables returns both tables with nothing but the sets that pins are in.
func pinTables(name string, p pinned) []table {
	return []table{
		{family: nftables.TableFamilyINet, name: name, sets: []set{portSet(p)}},
		{family: nftables.TableFamilyBridge, name: name, sets: append([]set{portSet(p)}, sourceSets(p)...)},
	}
}

// portSet is in both tables: no set can be seen from two.
func portSet(p pinned) set {
	return set{name: setPorts, key: nftables.TypeIFIndex, elements: p.ports}
}

func sourceSets(p pinned) []set {
	// See sourceKey.
	key4 := nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	key6 := nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	return []set{
		{name: setSources4, key: key4, elements: p.sources4},
		{name: setSources6, key: key6, elements: p.sources6},
	}
}
