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
