package main

// sysctlDir is where the host's kernel settings are by default; empty where
// there are none.
func sysctlDir(goos string) string {
	if goos == "windows" {
		return ""
	}
	return "/proc/sys/net"
}

// hostRoot is where the host's resolv.conf is below by default; empty where there
// is none.
func hostRoot(goos string) string {
	if goos == "windows" {
		return ""
	}
	return "/"
}

// hasModes tells whether a file's mode says who may run it.
func hasModes(goos string) bool { return goos != "windows" }

// whatStays says what is left of the data plane when the daemon ends: WireGuard's
// adapters of Windows end with the process that has them open.
func whatStays(goos string) string {
	if goos == "windows" {
		return "sandboxes stay attached, traffic between nodes stops until the daemon is back"
	}
	return "the data plane stays up"
}
