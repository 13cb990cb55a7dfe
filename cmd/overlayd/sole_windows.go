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
		err := checkOwner(path, handle)
		_ = windows.CloseHandle(handle)
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w of this machine: end it first (it holds the mutex %s)", errInCharge, path)
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return nil, fmt.Errorf("mutex %s belongs to a stranger, or this process is not elevated: %w", path, err)
	case errors.Is(err, windows.ERROR_INVALID_OWNER):
		return nil, fmt.Errorf("create mutex %s: only SYSTEM and elevated administrators may: %w", path, err)
	}
	return nil, fmt.Errorf("create mutex %s: %w", path, err)
}

// checkOwner refuses a mutex that is not a daemon's: in Global every user can make
// one, and waiting for its end would be waiting for him.
func checkOwner(path string, handle windows.Handle) error {
	have, err := windows.GetSecurityInfo(handle, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("ask for the owner of mutex %s: %w", path, err)
	}
	owner, _, err := have.Owner()
	if err != nil {
		return fmt.Errorf("ask for the owner of mutex %s: %w", path, err)
	}
	if isAdministrator(owner) {
		return nil
	}
	name := owner.String()
	if account, domain, _, err := owner.LookupAccount(""); err == nil {
		name = domain + `\` + account
	}
	return fmt.Errorf("mutex %s belongs to %s, who is no daemon: end the program that holds it", path, name)
}
