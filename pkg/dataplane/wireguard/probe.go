package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var errNoEcho = errors.New("no answer to an echo request")

// helperStatus reads the status of the first reply that Windows' IP Helper wrote:
// ICMP_ECHO_REPLY, or ICMPV6_ECHO_REPLY with an address of 26 bytes and two of
// padding. 0 is an answer; other numbers are named in ipexport.h.
func helperStatus(family int, reply []byte) error {
	at := []int{4, 28}[family]
	if len(reply) < at+4 {
		return fmt.Errorf("a reply of %d bytes", len(reply))
	}
	if status := binary.NativeEndian.Uint32(reply[at:]); status != 0 {
		return fmt.Errorf("%w: IP status %d", errNoEcho, status)
	}
	return nil
}
