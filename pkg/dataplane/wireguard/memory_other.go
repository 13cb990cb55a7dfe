//go:build !linux

package wireguard

// smallPages does nothing: huge pages are Linux's.
func smallPages() {}
