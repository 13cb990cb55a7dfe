// Package failpoint marks the places where a test may end, break or hold a
// process.
//
// In an ordinary build Hit does nothing and costs nothing. With the build tag
// "failpoints" it obeys the environment variable ZLAYER_FAILPOINT, which holds
// NAME=kill (the process kills itself with SIGKILL when it reaches NAME) or
// NAME=error (Hit returns an error there) or NAME=hold:FIFO (Hit waits there
// until someone has opened the FIFO for writing and closed it again; without
// the FIFO it passes). Safe for concurrent use.
package failpoint

// Env is the environment variable that arms one failpoint in builds with the
// tag "failpoints".
const Env = "ZLAYER_FAILPOINT"
