package shim_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const exampleKey = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="

// exampleDaemon stands in for overlayd.
func exampleDaemon(_ context.Context, req shim.Request) (shim.Response, error) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	switch req := req.(type) {
	case *shim.SetupGlobalOverlay:
		return &shim.BridgeName{Name: "zl-prod-g"}, nil
	case *shim.SetupServiceOverlay:
		return &shim.ServiceOverlay{Name: "zl-prod-web-d", Mode: req.Mode, WGPort: 51821, Subnet: prefix("10.200.3.64/28")}, nil
	case *shim.Status:
		return &shim.StatusSnapshot{
			Interface: "zl-prod-g", NodeIP: addr("10.200.3.1"), ServiceCount: 1,
			Pools: []shim.PoolStatus{{Prefix: prefix("10.200.3.0/24"), Capacity: 253, Used: 2, Resting: 1}},
			Attachments: []shim.AttachmentStatus{
				{ContainerID: "web-1", IfName: "eth0", Segment: "web", Addresses: []netip.Addr{addr("10.200.3.65")}},
			},
			NAT: &shim.NATStatus{Enabled: true, Candidates: []shim.NATCandidate{
				{Type: shim.CandidateHost, Address: netip.MustParseAddrPort("192.0.2.1:51820"), Priority: 100},
			}},
			DNS: &shim.DNSStatus{Enabled: true, Zone: "overlay.local", Names: 1, Listeners: []shim.DNSListener{
				{Address: netip.MustParseAddrPort("10.200.3.1:53")}, {Address: netip.MustParseAddrPort("10.200.3.1:15353"), Problem: "in use"},
			}},
		}, nil
	case *shim.AttachContainer:
		switch req.Handle.(type) {
		case *shim.GuestManaged:
			return &shim.GuestConfig{OverlayIP: addr("10.200.3.9"), PrefixLen: 32, PrivateKey: "secret", PublicKey: exampleKey}, nil
		case *shim.WindowsContainer:
			return &shim.Attached{IP: addr("10.200.3.66"), NamespaceGUID: "aabbccdd-eeff-0011-2233-445566778899"}, nil
		}
		return &shim.Attached{IP: addr("10.200.3.65"), Interface: "eth0", MTU: 1420}, nil
	}
	return &shim.OK{}, nil
}

// withManager runs use with a manager of an exampleDaemon.
func withManager(use func(ctx context.Context, m *shim.OverlayManager) error) {
	if err := serveExample(use); err != nil {
		fmt.Println("error:", err)
	}
}

func serveExample(use func(ctx context.Context, m *shim.OverlayManager) error) error {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket, remove, err := shim.ScratchSocket()
	if err != nil {
		return err
	}
	defer remove()
	l, err := shim.Listen(socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- shim.Serve(ctx, l, shim.HandlerFunc(exampleDaemon), shim.ServeOptions{}) }()
	m, err := shim.NewOverlayManager(shim.OverlayOptions{
		Deployment: "prod", SliceCIDR: netip.MustParsePrefix("10.200.3.0/24"), NodeID: 3, Socket: socket, DataDir: dir,
	})
	if err == nil {
		err = errors.Join(use(ctx, m), m.Cleanup(ctx))
	}
	cancel()
	return errors.Join(err, <-served)
}

func ExampleNewOverlayManager() {
	m, err := shim.NewOverlayManager(shim.OverlayOptions{
		Deployment: "prod", SliceCIDR: netip.MustParsePrefix("10.200.3.0/24"),
	})
	fmt.Println(m.ClusterCIDR(), m.SliceCIDR(), m.OverlayPort(), m.NATEnabled(), err)
	_, err = shim.NewOverlayManager(shim.OverlayOptions{Deployment: "prod", SliceCIDR: netip.MustParsePrefix("10.99.3.0/24")})
	fmt.Println(err)
	// Output:
	// 10.200.0.0/16 10.200.3.0/24 51820 true <nil>
	// new overlay manager: option SliceCIDR: 10.99.3.0/24 is not inside of the cluster's 10.200.0.0/16
}

func ExampleOverlayManager_SetupGlobalOverlay() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		fmt.Println(m.HasGlobalTransport())
		if err := m.SetupGlobalOverlay(ctx); err != nil {
			return err
		}
		fmt.Println(m.HasGlobalTransport(), m.GlobalInterface(), m.NodeIP())
		return nil
	})
	// Output:
	// false
	// true zl-prod-g 10.200.3.1
}

func ExampleOverlayManager_SetupServiceOverlay() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		web, err := m.SetupServiceOverlay(ctx, "web", shim.ModeDedicated)
		if err != nil {
			return err
		}
		fmt.Println(web.Name, web.Mode, web.WGPort, web.Subnet)
		count, err := m.ServiceCount(ctx)
		if err != nil {
			return err
		}
		fmt.Println(count)
		return m.TeardownServiceOverlay(ctx, "web")
	})
	// Output:
	// zl-prod-web-d dedicated 51821 10.200.3.64/28
	// 1
}

func ExampleOverlayManager_AttachContainer() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		if err := m.SetDNSConfig(shim.DNSConfig{Server: netip.MustParseAddrPort("10.200.3.1:53"), Domain: "prod.local"}); err != nil {
			return err
		}
		sandbox := &shim.LinuxPID{PID: 4242}
		attached, err := m.AttachContainer(ctx, sandbox, "web", true)
		if err != nil {
			return err
		}
		fmt.Println(attached.IP, attached.Interface, attached.MTU)
		return m.DetachContainer(ctx, sandbox)
	})
	// Output: 10.200.3.65 eth0 1420
}

// A guest's configuration holds its private key, which does not print.
func ExampleOverlayManager_AttachContainerGuest() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		config, err := m.AttachContainerGuest(ctx, "vm-1", "", true)
		if err != nil {
			return err
		}
		fmt.Printf("%s/%d %v\n", config.OverlayIP, config.PrefixLen, config.PrivateKey)
		return m.DetachContainerGuest(ctx, "vm-1")
	})
	// Output: 10.200.3.9/32 (private key)
}

func ExampleOverlayManager_AttachContainerHCN() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		attached, err := m.AttachContainerHCN(ctx, "ctr-1", "web", netip.Addr{})
		if err != nil {
			return err
		}
		fmt.Println(attached.NamespaceGUID, attached.IP)
		fmt.Println(m.HCNAttachments())
		return m.DetachContainerHCN(ctx, shim.NamespaceGUID(attached.NamespaceGUID))
	})
	// Output:
	// aabbccdd-eeff-0011-2233-445566778899 10.200.3.66
	// map[aabbccdd-eeff-0011-2233-445566778899:{web 10.200.3.66}]
}

func ExampleOverlayManager_AddGlobalPeer() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		peer := shim.PeerSpec{
			PublicKey: exampleKey, Endpoint: "node-2.example:51820",
			AllowedIPs: shim.AllowedIPs{netip.MustParsePrefix("10.200.4.0/24")},
		}
		fmt.Println(m.AddGlobalPeer(ctx, peer))
		fmt.Println(m.AddServicePeer(ctx, "web", peer))
		fmt.Println(m.AddServicePeer(ctx, "", peer))
		return m.RemoveServicePeer(ctx, "web", peer.PublicKey)
	})
	// Output:
	// <nil>
	// <nil>
	// add peer: service: must not be empty
}

func ExampleOverlayManager_NATStatusSnapshot() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		if err := m.NATMaintenanceTick(ctx); err != nil {
			return err
		}
		status, err := m.NATStatusSnapshot(ctx)
		if errors.Is(err, errors.ErrUnsupported) {
			fmt.Println("this daemon knows no NAT traversal")
			return nil
		}
		if err != nil {
			return err
		}
		for _, candidate := range status.Candidates {
			fmt.Println(candidate.Type, candidate.Address)
		}
		return nil
	})
	// Output: host 192.0.2.1:51820
}

func ExampleOverlayManager_DNSStatusSnapshot() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		if err := m.RegisterDNS(ctx, "web", netip.MustParseAddr("10.200.3.65")); err != nil {
			return err
		}
		status, err := m.DNSStatusSnapshot(ctx)
		if err != nil {
			return err
		}
		fmt.Println("web."+status.Zone, status.Servers())
		return m.UnregisterDNS(ctx, "web")
	})
	// Output: web.overlay.local [10.200.3.1:53]
}

func ExampleOverlayManager_RestoreIPAMState() {
	withManager(func(ctx context.Context, m *shim.OverlayManager) error {
		stats, err := m.IPAllocStats(ctx)
		if err != nil {
			return err
		}
		fmt.Println(stats.Allocated, "of", stats.Total)
		if err := m.PersistIPAMState(ctx); err != nil {
			return err
		}
		// After a restart: does every sandbox still hold its address?
		fmt.Println(m.RestoreIPAMState(ctx))
		return nil
	})
	// Output:
	// 2 of 253
	// <nil>
}
