package main

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// soleName is of the whole machine (Global), since HCN's networks are: a daemon
// in a HostProcess container meets one that is a service.
const soleName = `Global\zlayer-overlayd`

// soleMutex is a handle of the mutex soleName. Nobody ever waits for it or owns
// it: it is held by being there.
type soleMutex windows.Handle

func (m soleMutex) Close() error { return windows.CloseHandle(windows.Handle(m)) }

func (soleMutex) forget() error { return nil }

// becomeSole makes this process the only one that may change the data plane of
// this machine, until it is closed. The daemon's pipe does not tell: a forgotten
// --config names another one, on the same machine.
func becomeSole() (sole, error) { return holdMutex(soleName) }

func holdMutex(path string) (sole, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("name mutex %s: %w", path, err)
	}
	descriptor, err := windows.SecurityDescriptorFromString(administratorsOnly)
	if err != nil {
		return nil, fmt.Errorf("protect mutex %s: %w", path, err)
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	handle, err := windows.CreateMutex(attributes, false, name)
	switch {
	case err == nil:
		return soleMutex(handle), nil
	case errors.Is(err, windows.ERROR_ALREADY_EXISTS):
		_ = windows.CloseHandle(handle)
		return nil, fmt.Errorf("%w of this machine: end it first (it holds the mutex %s)", errInCharge, path)
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return nil, fmt.Errorf("mutex %s belongs to a stranger, or this process is not elevated: %w", path, err)
	case errors.Is(err, windows.ERROR_INVALID_OWNER):
		return nil, fmt.Errorf("create mutex %s: only SYSTEM and elevated administrators may: %w", path, err)
	}
	return nil, fmt.Errorf("create mutex %s: %w", path, err)
}
