package shim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// AttachContainer puts a sandbox on the segment of a service, or on the default
// one if service is empty. The handle is *LinuxNetns or *LinuxPID. With
// joinGlobal the sandbox reaches the rest of the overlay, not only the service.
// Asking again gives the same answer.
func (m *OverlayManager) AttachContainer(ctx context.Context, handle Handle, service string, joinGlobal bool) (*Attached, error) {
	if err := onLinux(handle); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	attached, err := m.client.Attach(ctx, m.attachRequest(handle, service, joinGlobal))
	if err != nil {
		return nil, fmt.Errorf("attach sandbox %s: %w", sandboxName(handle), err)
	}
	return attached, nil
}

// DetachContainer takes back AttachContainer; a sandbox that is not attached
// is no error.
func (m *OverlayManager) DetachContainer(ctx context.Context, handle Handle) error {
	if err := onLinux(handle); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	if err := m.client.Detach(ctx, handle); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", sandboxName(handle), err)
	}
	return nil
}

// AttachContainerGuest gives a guest, a machine with a WireGuard device of its
// own, its place in the overlay. Asking again for an ID gives the same answer.
func (m *OverlayManager) AttachContainerGuest(ctx context.Context, id, service string, joinGlobal bool) (*GuestConfig, error) {
	if id == "" {
		return nil, errors.New("attach guest: ID: must not be empty")
	}
	config, err := m.client.AttachGuest(ctx, m.attachRequest(&GuestManaged{ID: id}, service, joinGlobal))
	if err != nil {
		return nil, fmt.Errorf("attach guest %s: %w", short(id), err)
	}
	return config, nil
}

// DetachContainerGuest takes back AttachContainerGuest; a guest that is not
// attached is no error.
func (m *OverlayManager) DetachContainerGuest(ctx context.Context, id string) error {
	if id == "" {
		return errors.New("detach guest: ID: must not be empty")
	}
	if err := m.client.Detach(ctx, &GuestManaged{ID: id}); err != nil {
		return fmt.Errorf("detach guest %s: %w", short(id), err)
	}
	return nil
}

// HCNAttachedSandbox is where AttachContainerHCN put a container.
type HCNAttachedSandbox struct {
	Service string
	IP      netip.Addr
}

// AttachContainerHCN gives a Windows container a network namespace on the
// segment of a service: with the address ip, reserved before, or any if it is
// none. The answer's NamespaceGUID is what the container is to be started in and
// what DetachContainerHCN wants. The manager remembers it until then. On Windows
// there is no way to join the global overlay beside a service.
func (m *OverlayManager) AttachContainerHCN(ctx context.Context, containerID, service string, ip netip.Addr) (*Attached, error) {
	attached, err := m.attachHCN(ctx, containerID, service, ip)
	if err != nil {
		return nil, fmt.Errorf("attach Windows container %s: %w", short(containerID), err)
	}
	return attached, nil
}

func (m *OverlayManager) attachHCN(ctx context.Context, containerID, service string, ip netip.Addr) (*Attached, error) {
	if containerID == "" {
		return nil, errors.New("container ID: must not be empty")
	}
	attached, err := m.client.Attach(ctx, m.attachRequest(&WindowsContainer{ContainerID: containerID, IP: ip}, service, false))
	if err != nil {
		return nil, err
	}
	guid, err := ParseNamespaceGUID(attached.NamespaceGUID)
	if err != nil {
		return nil, fmt.Errorf("overlayd's answer: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hcn[guid] = HCNAttachedSandbox{Service: service, IP: attached.IP}
	return attached, nil
}

// DetachContainerHCN takes back AttachContainerHCN of this or an earlier
// process; a namespace that is not attached is no error. It is remembered until
// the daemon has answered.
func (m *OverlayManager) DetachContainerHCN(ctx context.Context, namespace NamespaceGUID) error {
	guid, err := ParseNamespaceGUID(string(namespace))
	if err == nil {
		// The wire has no field for a namespace: it goes as the container's ID.
		err = m.client.Detach(ctx, &WindowsContainer{ContainerID: string(guid), IP: m.HCNAttachments()[guid].IP})
	}
	if err != nil {
		return fmt.Errorf("detach Windows namespace %s: %w", short(string(namespace)), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.hcn, guid)
	return nil
}

// attachRequest is what all attaches have in common.
func (m *OverlayManager) attachRequest(handle Handle, service string, joinGlobal bool) *AttachContainer {
	dns := m.dnsConfig()
	return &AttachContainer{
		Handle: handle, Service: service, JoinGlobal: joinGlobal, DNSServer: dns.Server.Addr(), DNSDomain: dns.Domain,
	}
}

// onLinux refuses handles for which there are methods of their own.
func onLinux(handle Handle) error {
	switch h := handle.(type) {
	case *LinuxNetns:
		if h.ContainerID == "" || h.IfName == "" {
			return errors.New("handle: no container ID or no interface name")
		}
		return nil
	case *LinuxPID:
		if h.PID == 0 {
			return errors.New("handle: process 0 is none")
		}
		return nil
	case nil:
		return errors.New("handle: there is none")
	}
	return fmt.Errorf("handle: %s is no sandbox of Linux", handle.Platform())
}

func sandboxName(handle Handle) string {
	switch h := handle.(type) {
	case *LinuxNetns:
		return h.ContainerID + "/" + h.IfName
	case *LinuxPID:
		return fmt.Sprintf("of process %d", h.PID)
	}
	return handle.Platform()
}
