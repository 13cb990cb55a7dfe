// Package natlab makes a small internet in network namespaces: public servers,
// and routers with hosts behind them, of every kind that stands between two
// nodes. Use it from one goroutine, in the lab that netlab enters.
//
//	                    internet
//	 192.0.2.0/24, 198.51.100.0/24, 2001:db8::/64
//	-----+-----------------+--------------------+-----
//	     |                 | wan                | wan
//	  [server]         [router]             [carrier]
//	                       | lan                | lan   a Router of a Router:
//	                -------+-------      -------+-----  carrier-grade NAT
//	                   |       |            | wan
//	                [host]  [host]      [router]
//	                                        | lan
//	                                     [host]
//
// Hosts behind a router that translates have addresses of 192.168.N.0/24 and
// fdc0:ffee:N::/64, others of 203.0.113.0/24 and 2001:db8:N::/64.
//
// What a router does to a family is its Kind. In the words of RFC 4787, where
// "address" is an address, and "port" an address and a port:
//
//	kind               mapping      filtering    how
//	Routed             none         none         hosts have public addresses
//	Firewall           none         port         the same, with a stateful filter
//	FullCone           independent  independent  a learned map for what comes in
//	AddressRestricted  independent  address      the same, for whom the host has sent to
//	PortRestricted     independent  port         masquerading
//	Symmetric          port         port         masquerading to random ports
//
// A mapping that is independent of the destination has a port that is computed
// from the host and its port, so it is never that of the host, never the same
// for two hosts with the same port, and another one after ForgetMappings. A
// chance in thousands remains that two sockets of different hosts and ports
// want the same one.
//
// What nobody asked for is dropped without an answer and before the router
// remembers it. Otherwise the kernel takes a stranger's packet for a connection
// of the router's own, whose port is then taken when the host sends there.
//
// A mapping lives as long as packets pass, in either direction; a full cone's
// and an address-restricted router's openness for strangers as long as the host
// sends. Routers see to UDP. TCP connections from within always work; from outside
// only those to a host of a Routed router.
package natlab
