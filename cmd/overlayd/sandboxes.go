package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// attach puts a sandbox on its segment, or gives a guest its place.
func (d *daemon) attach(ctx context.Context, r *shim.AttachContainer) (shim.Response, error) {
	if guest, ok := r.Handle.(*shim.GuestManaged); ok {
		return d.addGuest(ctx, guest, r)
	}
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	request, err := attachRequest(netns, r)
	if err != nil {
		return nil, err
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	if request.Service, err = d.serviceOf(ctx, r); err != nil {
		return nil, err
	}
	if err := d.takeReserved(ctx, r.Handle); err != nil {
		return nil, err
	}
	request.DNS = d.endpointDNS(r, cmp.Or(request.Service.Name, dataplane.DefaultSegment))
	opened, err := openNetns(r.Handle, netns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = opened.Close() }()
	request.Netns = opened
	// This ADD is younger than any DEL that lies there.
	if err := d.graves.forget(request.Key); err != nil {
		return nil, err
	}
	start := time.Now()
	attached, err := d.plane.Attach(ctx, request)
	if err != nil {
		return nil, err
	}
	d.log.Info("sandbox attached", "op", "attach", "sandbox", request.Key.String(), "pod", podName(r.Pod), "service", request.Service.Name,
		"ip", attached.Addrs, "iface", attached.Port, "took", time.Since(start))
	d.told.hear(r)
	answer := attachedAnswer(netns, attached)
	answer.DNS = d.dnsOf(attached.Segment, r.DNSServer, r.DNSDomain)
	return answer, nil
}

// onlyInterface is the interface of a sandbox that ZLayer's agent asks for: its
// handles name none.
const onlyInterface = "eth0"

// netnsOf returns the handle of a sandbox, which a process stands for by its
// number. The other kinds of handle are no sandbox of this system.
func netnsOf(handle shim.Handle) (*shim.LinuxNetns, error) {
	switch handle := handle.(type) {
	case *shim.LinuxNetns:
		if handle.ContainerID == "" || handle.IfName == "" {
			return nil, fmt.Errorf("handle without container ID or interface name: %w", dataplane.ErrInvalid)
		}
		return handle, nil
	case *shim.LinuxPID:
		if handle.PID == 0 {
			return nil, fmt.Errorf("handle with process 0: %w", dataplane.ErrInvalid)
		}
		return &shim.LinuxNetns{
			ContainerID: "pid:" + strconv.FormatUint(uint64(handle.PID), 10), IfName: onlyInterface, Netns: pidNetns(handle),
		}, nil
	case *shim.WindowsContainer:
		if runtime.GOOS == "windows" {
			return hcnSandbox(handle)
		}
	}
	return nil, fmt.Errorf("handle %s: %w", handle.Platform(), errors.ErrUnsupported)
}

// hcnSandbox returns a sandbox of Windows in the form that all have here: its
// namespace is a GUID in place of a path, and stays empty where the handle says
// none, for the daemon to make one.
func hcnSandbox(handle *shim.WindowsContainer) (*shim.LinuxNetns, error) {
	if handle.ContainerID == "" {
		return nil, fmt.Errorf("handle without container ID: %w", dataplane.ErrInvalid)
	}
	return &shim.LinuxNetns{ContainerID: handle.ContainerID, IfName: cmp.Or(handle.IfName, onlyInterface), Netns: string(handle.Namespace)}, nil
}

// hcnNamespace is the GUID by which ZLayer's agent, whose handles have no
// interface, detaches from an HCN namespace: in place of a container's ID.
func hcnNamespace(handle shim.Handle) (guid string, is bool) {
	container, is := handle.(*shim.WindowsContainer)
	if !is || container.IfName != "" {
		return "", false
	}
	parsed, err := shim.ParseNamespaceGUID(container.ContainerID)
	return string(parsed), err == nil
}

// pidNetns is the path of a process's network namespace. The number means what
// it means in the daemon's own PID namespace.
func pidNetns(handle *shim.LinuxPID) string {
	return filepath.Join("/proc", strconv.FormatUint(uint64(handle.PID), 10), "ns", "net")
}

// openNetns returns the sandbox's namespace, which the caller closes: the one
// that came with the request, or that of the process now. On Windows it has a
// name and no file.
func openNetns(handle shim.Handle, netns *shim.LinuxNetns) (*os.File, error) {
	if runtime.GOOS == "windows" {
		return nil, nil
	}
	if _, ok := handle.(*shim.LinuxPID); !ok {
		if netns.File == nil {
			return nil, fmt.Errorf("no network namespace came with the request: %w", dataplane.ErrInvalid)
		}
		return netns.File, nil
	}
	file, err := os.Open(netns.Netns)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open network namespace: %w: %w", err, attach.ErrNotAttached)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return file, nil
}

// namespaceOf is the sandbox's HCN namespace. Elsewhere than on Windows, the name
// of a namespace is a path, and stands for one only as long as nobody reuses it.
func namespaceOf(netns *shim.LinuxNetns) string {
	if runtime.GOOS != "windows" {
		return ""
	}
	return netns.Netns
}

func keyOf(netns *shim.LinuxNetns) attach.Key {
	return attach.Key{ContainerID: netns.ContainerID, IfName: netns.IfName}
}

// attachRequest is what the wire asks for, without service and namespace.
func attachRequest(netns *shim.LinuxNetns, r *shim.AttachContainer) (dataplane.AttachRequest, error) {
	request := dataplane.AttachRequest{Key: keyOf(netns), IPs: r.IPs, MTU: r.MTU, Network: r.Network}
	request.Namespace = namespaceOf(netns)
	if container, is := r.Handle.(*shim.WindowsContainer); is && container.IP.IsValid() {
		request.IPs = []netip.Addr{container.IP}
	}
	if r.MAC == "" {
		return request, nil
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 {
		return request, fmt.Errorf("MAC %q is not six bytes: %w", r.MAC, dataplane.ErrInvalid)
	}
	request.MAC = mac
	return request, nil
}

// takeReserved gives the address back that was reserved for the container, for it
// to take. One that a sandbox has already is that of a repeated request, or of
// another's, which the attach tells apart.
func (d *daemon) takeReserved(ctx context.Context, handle shim.Handle) error {
	container, is := handle.(*shim.WindowsContainer)
	if !is || !container.IP.IsValid() {
		return nil
	}
	if err := d.plane.ReleaseIP(ctx, container.IP, ""); err != nil && !errors.Is(err, dataplane.ErrConflict) {
		return err
	}
	return nil
}

// endpointDNS is what a sandbox's endpoint on Windows is told of DNS: what the
// runtime says, else what this node finds right.
func (d *daemon) endpointDNS(r *shim.AttachContainer, segment string) attach.DNS {
	settings := r.DNS
	if settings == nil {
		settings = d.dnsOf(segment, r.DNSServer, r.DNSDomain)
	}
	if settings == nil {
		return attach.DNS{}
	}
	return attach.DNS{Servers: settings.Nameservers, Domain: settings.Domain, Search: settings.Search}
}

func podName(pod *shim.Pod) string {
	if pod == nil {
		return ""
	}
	return pod.Namespace + "/" + pod.Name
}

// attachedAnswer tells the plugin what the sandbox got. Its only routes are by
// the gateways, which it takes to be on the link without a route that says so.
func attachedAnswer(netns *shim.LinuxNetns, a dataplane.Attachment) *shim.Attached {
	answer := &shim.Attached{
		Addresses: a.Prefixes, Gateways: a.Gateways, MTU: a.MTU,
		MAC: a.MAC.String(), HostMAC: a.HostMAC.String(),
		Interface: netns.IfName, HostInterface: a.Port, Bridge: a.Bridge,
		Sandbox: cmp.Or(netns.Netns, a.Namespace), NamespaceGUID: a.Namespace, Segment: a.Segment,
	}
	if len(a.Addrs) > 0 {
		answer.IP = a.Addrs[0]
	}
	for _, gateway := range a.Gateways {
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gateway.Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		answer.Routes = append(answer.Routes, shim.Route{Dst: everything, Gateway: gateway})
	}
	return answer
}

// detach needs no namespace. Once begun, it goes on without its caller: a
// runtime that ended its plugin may not come again.
func (d *daemon) detach(ctx context.Context, r *shim.DetachContainer) (shim.Response, error) {
	if guest, ok := r.Handle.(*shim.GuestManaged); ok {
		return done(d.removeGuest(ctx, guest))
	}
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	if namespace, is := hcnNamespace(r.Handle); is {
		return done(d.plane.DetachNamespace(ctx, namespace))
	}
	start, key := time.Now(), keyOf(netns)
	if err := d.plane.Detach(ctx, key); err != nil {
		return nil, err
	}
	d.log.Info("sandbox detached", "op", "detach", "sandbox", key.String(), "took", time.Since(start))
	return &shim.OK{}, nil
}

func (d *daemon) check(ctx context.Context, r *shim.CheckContainer) (shim.Response, error) {
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	opened, err := openNetns(r.Handle, netns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = opened.Close() }()
	attached, err := d.plane.Check(ctx, keyOf(netns), opened, namespaceOf(netns))
	if err != nil {
		return nil, err
	}
	answer := attachedAnswer(netns, attached)
	answer.DNS = d.dnsOf(attached.Segment, netip.Addr{}, "")
	return answer, nil
}

func (d *daemon) collect(ctx context.Context, r *shim.GCContainers) (shim.Response, error) {
	request := dataplane.GCRequest{Network: r.Network, Since: d.plane.Now()}
	for _, a := range r.Valid {
		request.Valid = append(request.Valid, attach.Key{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	if err := d.plane.GC(ctx, request); err != nil {
		return nil, err
	}
	return &shim.OK{}, nil
}
