package wireguard

import (
	"net"

	"github.com/vishvananda/netlink"
)

// stands reports whether the link is there, up and carried.
func (d *Device) stands() bool {
	link, err := d.nl.LinkByIndex(d.index)
	if err != nil || link.Attrs().Name != d.cfg.Name || link.Attrs().MTU != d.MTU() || !isUp(link) {
		return false
	}
	return d.backend == Kernel || d.user != nil && !d.user.dead() && d.user.uapi.alive()
}

func isUp(link netlink.Link) bool { return link.Attrs().Flags&net.FlagUp != 0 }
