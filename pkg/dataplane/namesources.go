package dataplane

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// sandbox is one of this node, as its names need it.
type sandbox struct {
	service string
	segment string // as attach tells of it: of a long name there may be the digest alone
	addrs   []netip.Addr
}

func (p *parts) sandboxOf(a attach.Attachment) sandbox {
	return sandbox{p.services.nameOf(a), a.Segment, a.Addrs}
}

// tellAttachments tells of all sandboxes of this node.
func (d *Dataplane) tellAttachments(parts *parts) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	owners, here := map[string][]dns.Entry{}, map[string]bool{}
	var moved []netip.Addr
	for _, attached := range parts.attacher.List() {
		id := attached.Key.ID()
		here[id] = true
		moved = append(moved, n.placeLocked(id, parts.sandboxOf(attached))...)
		if entries := n.entriesOf(n.sandboxes[id]); len(entries) > 0 {
			owners[id] = entries
		}
	}
	for id := range n.sandboxes {
		if !here[id] {
			moved = append(moved, n.placeLocked(id, sandbox{})...)
		}
	}
	n.tell(sourceAttachments, owners)
	if !n.adopted {
		n.adopted = true
		n.pods.leaveAll(n.hasLeft)
	}
	n.tellPodsAtLocked(moved)
}

// tellAttachment tells what one sandbox of this node has now, nothing if it is
// not attached.
func (d *Dataplane) tellAttachment(parts *parts, key attach.Key) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	id := key.ID()
	var now sandbox
	if attached, found := parts.attacher.Lookup(key); found {
		now = parts.sandboxOf(attached)
	}
	moved := n.placeLocked(id, now)
	n.tellOne(sourceAttachments, id, n.entriesOf(now))
	n.tellPodsAtLocked(moved)
}

// placeLocked notes where a sandbox is, and that whoever had an address that it
// left has it no more. It returns the addresses of which that is news.
func (n *naming) placeLocked(id string, now sandbox) (moved []netip.Addr) {
	before := n.sandboxes[id]
	for _, addr := range before.addrs {
		if n.at[addr] == id && !slices.Contains(now.addrs, addr) {
			delete(n.at, addr)
			n.pods.leave(n.self, addr)
			moved = append(moved, addr)
		}
	}
	for _, addr := range now.addrs {
		if n.at[addr] != id || before.segment != now.segment {
			moved = append(moved, addr)
		}
		n.at[addr] = id
	}
	n.sandboxes[id] = now
	if len(now.addrs) == 0 {
		delete(n.sandboxes, id)
	}
	return moved
}

// entriesOf are the names of a sandbox, without those of Kubernetes' pods, which
// alone know who is ready.
func (n *naming) entriesOf(s sandbox) []dns.Entry {
	if n.cfg.Pods || s.service == "" || s.service == DefaultSegment {
		return nil
	}
	name, err := serviceName(s.service)
	if err != nil {
		return nil
	}
	return []dns.Entry{{Name: name, Addrs: s.addrs, TTL: podTTL, Reverse: true}}
}

// serviceName is the name of a service: NAME.NAMESPACE.svc, or NAME if it has no
// namespace.
func serviceName(service string) (string, error) {
	namespace, name, namespaced := strings.Cut(service, "/")
	if !namespaced {
		return label(service)
	}
	return namespacedName(namespace, name)
}

func namespacedName(namespace, name string) (string, error) {
	namespace, err := label(namespace)
	if err != nil {
		return "", err
	}
	if name, err = label(name); err != nil {
		return "", err
	}
	return name + "." + namespace + ".svc", nil
}
