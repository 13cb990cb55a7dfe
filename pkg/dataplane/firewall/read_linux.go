package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// An actual is one of our tables as the kernel has it. It is read by our own
// decoder: the library's panics on objects it doesn't know, fails on sets of
// unknown types, and leaves out expressions it cannot decode, and all of these a
// stranger may have put into our table.
type actual struct {
	exists     bool
	flags      uint32
	chains     map[string]*actualChain
	sets       map[string]*actualSet
	objects    map[object]Counter
	flowtables []string
}

type actualChain struct {
	shape chainShape
	// bound says that the chain belongs to a rule and goes with it.
	bound bool
	rules []string // as describe returns them
}

// chainShape is what cannot be changed once a chain exists, and its policy.
type chainShape struct {
	hooked         bool
	kind           string
	hook, priority uint32
	policy         uint32
	device         string
}

type actualSet struct {
	shape    setShape
	elements map[element]struct{}
}

// setShape is what cannot be changed once a set exists.
type setShape struct {
	flags, keyType, keyLen uint32
	fields                 string // of a set of ranges: the length of each field
}

// fieldShape is one field in setShape.fields.
func fieldShape(length uint32) string { return fmt.Sprintf(" %d", length) }

// anonymous says that the set belongs to a rule and goes with it.
func (s setShape) anonymous() bool { return s.flags&unix.NFT_SET_ANONYMOUS != 0 }

type object struct {
	kind uint32
	name string
}

// readTable returns what the kernel has of our table of one family. A table that
// doesn't exist is not an error.
func (c *connection) readTable(family nftables.TableFamily, name string) (actual, error) {
	a := actual{chains: map[string]*actualChain{}, sets: map[string]*actualSet{}, objects: map[object]Counter{}}
	replies, err := c.request(unix.NFT_MSG_GETTABLE, family, 0, text(unix.NFTA_TABLE_NAME, name))
	if errors.Is(err, unix.ENOENT) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	for _, m := range replies {
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_TABLE_FLAGS {
				a.exists, a.flags = true, ad.Uint32()
			}
		}); err != nil {
			return a, err
		}
	}
	steps := []func(*connection, nftables.TableFamily, string) error{a.readChains, a.readRules, a.readSets, a.readObjects, a.readFlowtables}
	for _, read := range steps {
		if err := read(c, family, name); err != nil {
			return a, err
		}
	}
	return a, nil
}

// readChains goes through all chains of the family: the kernel has no filter.
func (a *actual) readChains(c *connection, family nftables.TableFamily, table string) error {
	replies, err := c.request(unix.NFT_MSG_GETCHAIN, family, netlink.Dump)
	if err != nil {
		return fmt.Errorf("read chains: %w", err)
	}
	const flags, flagBinding = 10, 1 << 2 // NFTA_CHAIN_FLAGS, NFT_CHAIN_BINDING
	for _, m := range replies {
		var owner, name string
		ch := &actualChain{}
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				owner = ad.String()
			case unix.NFTA_CHAIN_NAME:
				name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				ch.shape.kind = ad.String()
			case unix.NFTA_CHAIN_POLICY:
				ch.shape.policy = ad.Uint32()
			case unix.NFTA_CHAIN_HOOK:
				ch.shape.hooked = true
				ad.Nested(ch.shape.decodeHook)
			case flags:
				ch.bound = ad.Uint32()&flagBinding != 0
			}
		}); err != nil {
			return fmt.Errorf("read chains: %w", err)
		}
		if owner == table {
			a.chains[name] = ch
		}
	}
	return nil
}

func (s *chainShape) decodeHook(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_HOOK_HOOKNUM:
			s.hook = ad.Uint32()
		case unix.NFTA_HOOK_PRIORITY:
			s.priority = ad.Uint32()
		default: // a device: ours have none
			s.device = fmt.Sprintf("%x", ad.Bytes())
		}
	}
	return nil
}

func (a *actual) readRules(c *connection, family nftables.TableFamily, table string) error {
	replies, err := c.request(unix.NFT_MSG_GETRULE, family, netlink.Dump, text(unix.NFTA_RULE_TABLE, table))
	if err != nil {
		return fmt.Errorf("read rules: %w", err)
	}
	for _, m := range replies {
		var chain string
		var exprs, userData []byte
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				exprs = ad.Bytes()
			case unix.NFTA_RULE_USERDATA:
				userData = ad.Bytes()
			}
		}); err != nil {
			return fmt.Errorf("read rules: %w", err)
		}
		described, err := describe(byte(family), exprs)
		if err != nil {
			return fmt.Errorf("read a rule of chain %s: %w", chain, err)
		}
		if len(userData) > 0 { // a comment: ours have none
			described += fmt.Sprintf(" %x", userData)
		}
		if ch := a.chains[chain]; ch != nil {
			ch.rules = append(ch.rules, described)
		}
	}
	return nil
}

func (a *actual) readSets(c *connection, family nftables.TableFamily, table string) error {
	replies, err := c.request(unix.NFT_MSG_GETSET, family, netlink.Dump, text(unix.NFTA_SET_TABLE, table))
	if err != nil {
		return fmt.Errorf("read sets: %w", err)
	}
	for _, m := range replies {
		var name string
		s := &actualSet{}
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				s.shape.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				s.shape.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				s.shape.keyLen = ad.Uint32()
			case unix.NFTA_SET_DESC:
				ad.Nested(s.shape.decodeDescription)
			}
		}); err != nil {
			return fmt.Errorf("read sets: %w", err)
		}
		a.sets[name] = s
	}
	for name, s := range a.sets {
		if err := s.readElements(c, family, table, name); err != nil {
			return fmt.Errorf("read elements of set %s: %w", name, err)
		}
	}
	return nil
}

// decodeDescription reads the lengths of the fields of a concatenated key: a list
// within the description holds one entry for each.
func (s *setShape) decodeDescription(description *netlink.AttributeDecoder) error {
	for description.Next() {
		if description.Type() != nftables.NFTA_SET_DESC_CONCAT {
			continue
		}
		description.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(field *netlink.AttributeDecoder) error {
					for field.Next() {
						s.fields += fieldShape(field.Uint32())
					}
					return nil
				})
			}
			return nil
		})
	}
	return nil
}

func (a *actual) readObjects(c *connection, family nftables.TableFamily, table string) error {
	replies, err := c.request(unix.NFT_MSG_GETOBJ, family, netlink.Dump, text(unix.NFTA_OBJ_TABLE, table))
	if err != nil {
		return fmt.Errorf("read objects: %w", err)
	}
	for _, m := range replies {
		var o object
		var count Counter
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_OBJ_NAME:
				o.name = ad.String()
			case unix.NFTA_OBJ_TYPE:
				o.kind = ad.Uint32()
			case unix.NFTA_OBJ_DATA:
				if o.kind == unix.NFT_OBJECT_COUNTER {
					ad.Nested(count.decode)
				}
			}
		}); err != nil {
			return fmt.Errorf("read objects: %w", err)
		}
		a.objects[o] = count
	}
	return nil
}

func (c *Counter) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_COUNTER_PACKETS:
			c.Packets = ad.Uint64()
		case unix.NFTA_COUNTER_BYTES:
			c.Bytes = ad.Uint64()
		}
	}
	return nil
}

func (a *actual) readFlowtables(c *connection, family nftables.TableFamily, table string) error {
	replies, err := c.request(unix.NFT_MSG_GETFLOWTABLE, family, netlink.Dump, text(nftables.NFTA_FLOWTABLE_TABLE, table))
	if err != nil {
		return fmt.Errorf("read flowtables: %w", err)
	}
	for _, m := range replies {
		if err := attributes(m, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == nftables.NFTA_FLOWTABLE_NAME {
				a.flowtables = append(a.flowtables, ad.String())
			}
		}); err != nil {
			return fmt.Errorf("read flowtables: %w", err)
		}
	}
	return nil
}

// attributes calls see for every attribute of an nf_tables message.
func attributes(m netlink.Message, see func(*netlink.AttributeDecoder)) error {
	const headerLen = 4 // struct nfgenmsg
	if len(m.Data) < headerLen {
		return fmt.Errorf("nf_tables message of %d bytes", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[headerLen:])
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		see(ad)
	}
	return ad.Err()
}
