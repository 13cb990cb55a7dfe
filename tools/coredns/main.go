// Coredns is CoreDNS with the plugins that the bench needs, and nothing else:
// what it is compared with is no more than a server of one zone either.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/multisocket"
)

func main() { coremain.Run() }
