// Package wire drives the daemon by a client in another language that shares no
// code with it: what both sides believe of the wire, they have from its
// description.
package wire
