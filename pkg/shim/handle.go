package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
)

// LinuxNetns is a sandbox by its CNI key. It is an addition to ZLayer's wire.
type LinuxNetns struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`          // interface in the sandbox
	Netns       string `json:"netns,omitempty"` // path as the runtime knows it; for people

	// File is the opened network namespace. A client passes it to the daemon
	// with the request (SCM_RIGHTS) and keeps its own open. On the server it
	// is set if one was passed, belongs to the request, and is closed when
	// the Handler returns.
	File *os.File `json:"-"`
}

// Platform implements Handle.
func (*LinuxNetns) Platform() string { return "linux_netns" }

// LinuxPID is a sandbox by the process that lives in it; ZLayer's agent uses
// it. The number may have been reused by the time it is read.
type LinuxPID struct {
	PID uint32 `json:"pid"`
}

// Platform implements Handle.
func (*LinuxPID) Platform() string { return "linux_pid" }

// WindowsContainer is a container of the Host Compute Service.
//
// IfName and Namespace are additions to ZLayer's wire, for a CNI runtime, which
// has made the network namespace already: the key of the attachment is then
// container ID and interface, as on Linux, and the sandbox is the namespace. So
// a second container of a pod, which comes with the first's namespace, is
// answered with the first's attachment, and only the first's detach, by the
// key it was attached with, removes that. Without IfName the daemon makes a
// namespace, and a detach names it by its GUID in ContainerID.
type WindowsContainer struct {
	ContainerID string        `json:"container_id"`
	IP          netip.Addr    `json:"ip,omitzero"` // reserved before with AllocateIP
	IfName      string        `json:"ifname,omitempty"`
	Namespace   NamespaceGUID `json:"namespace,omitempty"` // to attach or check; a detach needs none
}

// Platform implements Handle.
func (*WindowsContainer) Platform() string { return "windows_container" }

// GuestManaged is a machine that runs a WireGuard device of its own. Attaching
// it is answered by *GuestConfig.
type GuestManaged struct {
	ID string `json:"id"`
}

// Platform implements Handle.
func (*GuestManaged) Platform() string { return "guest_managed" }

// Attachment is the key of one sandbox's interface.
type Attachment struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
}

// handleField carries a Handle through encoding/json.
type handleField struct{ Handle }

func (f handleField) MarshalJSON() ([]byte, error) {
	if f.Handle == nil {
		return nil, fmt.Errorf("no handle")
	}
	return tagged("platform", f.Platform(), f.Handle)
}

func (f *handleField) UnmarshalJSON(raw []byte) error {
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	var tag struct{ Platform string }
	if err := json.Unmarshal(raw, &tag); err != nil {
		return err
	}
	switch tag.Platform {
	case (*LinuxNetns)(nil).Platform():
		f.Handle = &LinuxNetns{}
	case (*LinuxPID)(nil).Platform():
		f.Handle = &LinuxPID{}
	case (*WindowsContainer)(nil).Platform():
		f.Handle = &WindowsContainer{}
	case (*GuestManaged)(nil).Platform():
		f.Handle = &GuestManaged{}
	default:
		return fmt.Errorf("unknown platform %s", short(tag.Platform))
	}
	return json.Unmarshal(raw, f.Handle)
}

// netnsOf returns the handle of req that a namespace can ride with, or nil.
func netnsOf(req Request) *LinuxNetns {
	var handle Handle
	switch req := req.(type) {
	case *AttachContainer:
		handle = req.Handle
	case *DetachContainer:
		handle = req.Handle
	case *CheckContainer:
		handle = req.Handle
	}
	netns, _ := handle.(*LinuxNetns)
	return netns
}
