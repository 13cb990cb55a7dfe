package wireguard

import (
	"fmt"
	"net"
	"reflect"

	"golang.zx2c4.com/wireguard/conn"
)

// sockets are a bind's, by family; nil where the kernel lacks it.
type sockets [2]*net.UDPConn

// socketsOf returns the sockets of an open bind, which can be had by reflection
// only.
func socketsOf(open conn.Bind) (s sockets, err error) {
	from, is := open.(*conn.StdNetBind)
	if !is {
		return s, fmt.Errorf("have a bind of type %T", open)
	}
	for i, name := range []string{"ipv4", "ipv6"} {
		field := reflect.ValueOf(from).Elem().FieldByName(name)
		if !field.IsValid() {
			return s, fmt.Errorf("wireguard-go's bind has no field %s", name)
		}
		socket, is := settable(field).Interface().(*net.UDPConn)
		if !is {
			return s, fmt.Errorf("wireguard-go's bind has a field %s of type %s", name, field.Type())
		}
		s[i] = socket
	}
	return s, nil
}

// bindOf6 returns a bind that sends to IPv6 by the sockets of an open one, and is
// neither opened nor closed itself.
//
// wireguard-go's bind keeps addresses for reuse in one pool for both families,
// and one that was used for IPv4 takes but the first four bytes of an IPv6
// address: the packet then goes to another host
// (https://github.com/WireGuard/wireguard-go/pull/135). With a bind, and so a
// pool, for each family that does not happen. The sockets can be had by
// reflection only. When the pull request is in, this goes.
func bindOf6(open conn.Bind) (conn.Bind, error) {
	from, is := open.(*conn.StdNetBind)
	if !is {
		return nil, fmt.Errorf("have a bind of type %T", open)
	}
	to := conn.NewStdNetBind().(*conn.StdNetBind)
	for _, name := range []string{"ipv6", "ipv6PC", "ipv6TxOffload"} {
		source, target := reflect.ValueOf(from).Elem().FieldByName(name), reflect.ValueOf(to).Elem().FieldByName(name)
		if !source.IsValid() {
			return nil, fmt.Errorf("wireguard-go's bind has no field %s", name)
		}
		settable(target).Set(settable(source))
	}
	return to, nil
}

// settable is a field without regard to whether it is exported.
func settable(field reflect.Value) reflect.Value {
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem()
}
