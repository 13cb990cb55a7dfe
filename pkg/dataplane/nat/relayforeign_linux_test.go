package nat

import (
	"net"
	"net/netip"
	"testing"

	"github.com/pion/turn/v5"
)

// TestRelayClientUsesAForeignServer has a server with a user and a password of
// its own.
func TestRelayClientUsesAForeignServer(t *testing.T) {
	relayAddresses(t)
	conn := listenAt(t, netip.AddrPortFrom(relayExternal, relayTestUDP))
	server, err := turn.NewServer(turn.ServerConfig{
		Realm: "example.org", LoggerFactory: silentTURN{},
		AuthHandler: func(request *turn.RequestAttributes) (string, []byte, bool) {
			return request.Username, turn.GenerateAuthKey(request.Username, request.Realm, "password"), request.Username == "user"
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn: conn,
			RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{
				RelayAddress: net.IP(relayExternal.AsSlice()), Address: relayExternal.String(),
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	relay := &relayTest{node: newTestNode(t)}
	foreign := func(password string) func(*RelayClientConfig) {
		return func(c *RelayClientConfig) {
			c.Shared, c.Username, c.Credential = nil, "user", NewSecret(password)
		}
	}
	a := relay.startPeer(t, newTestNode(t), foreign("password"), nil)
	b := relay.startPeer(t, newTestNode(t), foreign("password"), nil)
	a.awaitUp(t)
	b.awaitUp(t)
	exchange(t, a, b, "there")
	exchange(t, b, a, "and back")
	wrong := relay.startPeer(t, newTestNode(t), foreign("guess"), nil)
	if err := <-wrong.down; !contains(err.Error(), errRelayDenied.Error()) {
		t.Errorf("down says %v", err)
	}
}
