package wireguard

import (
	"fmt"
	"reflect"

	"golang.zx2c4.com/wireguard/conn"
)

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
