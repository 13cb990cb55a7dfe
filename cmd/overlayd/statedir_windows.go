package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// secureStateDir makes the folder of the private keys, or takes one that is
// there, so that SYSTEM and administrators alone can read what is in it. A
// file's mode says nothing about that here, and in ProgramData every user may
// read, and make folders. So nothing in a folder that is there may be anybody
// else's: whoever made it may know a key in it. Repeating it is fine.
func secureStateDir(path string) error {
	if err := makePrivate(path); err != nil {
		return fmt.Errorf("secure state folder %s: %w", path, err)
	}
	return nil
}

func makePrivate(path string) error {
	descriptor, err := windows.SecurityDescriptorFromString(privateFolder)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	if err := windows.CreateDirectory(name, attributes); !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return err
	}
	access, _, err := descriptor.DACL()
	if err != nil {
		return err
	}
	// First nobody else gets in any more, then what is in is looked at.
	if err := checkAdministrators(path); err != nil {
		return err
	}
	const protected = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION
	if err := windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, protected, nil, nil, access, nil); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(inside string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if kind := entry.Type(); !kind.IsRegular() && !kind.IsDir() {
			return fmt.Errorf("%s is a link", inside)
		}
		return checkAdministrators(inside)
	})
}

// checkAdministrators refuses a file or folder of somebody else's.
func checkAdministrators(path string) error {
	have, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("ask for the owner of %s: %w", path, err)
	}
	owner, _, err := have.Owner()
	if err != nil {
		return fmt.Errorf("ask for the owner of %s: %w", path, err)
	}
	if owner.IsWellKnown(windows.WinLocalSystemSid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		return nil
	}
	return fmt.Errorf("%s belongs to %s: remove it, or make it the administrators' (icacls %s /setowner *S-1-5-32-544) if you trust what is in it", path, owner, path)
}
