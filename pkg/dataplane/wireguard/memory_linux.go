package wireguard

import "golang.org/x/sys/unix"

// smallPages keeps transparent huge pages from this process (prctl(2),
// PR_SET_THP_DISABLE). An idle device has touched a little of each of its
// buffers; where the kernel gives huge pages to all, as Debian's does, that
// little is 2 MiB at a time. A kernel that refuses has none to give.
func smallPages() { _ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) }
