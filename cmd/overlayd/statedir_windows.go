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
	// First nobody else gets in any more, then what is in is looked at.
	if err := takeOver(path); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(inside string, _ fs.DirEntry, err error) error {
		if err != nil || inside == path {
			return err
		}
		return takeOver(inside)
	})
}

// takeOver makes the file or folder at path the administrators' alone, and refuses
// one that is somebody else's, or that is somewhere else: whoever made the link has
// it lead where he must not write himself. It opens path once, so that what is
// changed is what was looked at.
func takeOver(path string) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	const shared = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	const itself = windows.FILE_FLAG_OPEN_REPARSE_POINT | windows.FILE_FLAG_BACKUP_SEMANTICS // a link, and a folder
	handle, err := windows.CreateFile(name, windows.READ_CONTROL|windows.WRITE_DAC|windows.FILE_READ_ATTRIBUTES, shared, nil, windows.OPEN_EXISTING, itself, 0)
	if err != nil {
		return fmt.Errorf("open %s to change who has access: %w", path, err)
	}
	defer func() { _ = windows.CloseHandle(handle) }()
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(handle, &info); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	access, err := accessOf(path, info.FileAttributes, info.NumberOfLinks)
	if err != nil {
		return err
	}
	if err := checkAdministrators(path, handle); err != nil {
		return err
	}
	descriptor, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return err
	}
	// Unlike SetSecurityInfo this leaves alone what is inside, which may be links.
	const protected = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION
	if err := windows.SetKernelObjectSecurity(handle, protected, descriptor); err != nil {
		return fmt.Errorf("change who has access to %s: %w", path, err)
	}
	return nil
}

// checkAdministrators refuses a file or folder of somebody else's.
func checkAdministrators(path string, handle windows.Handle) error {
	have, err := windows.GetSecurityInfo(handle, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("ask for the owner of %s: %w", path, err)
	}
	owner, _, err := have.Owner()
	if err != nil {
		return fmt.Errorf("ask for the owner of %s: %w", path, err)
	}
	if isAdministrator(owner) {
		return nil
	}
	return fmt.Errorf("%s belongs to %s: remove it, or make it the administrators' (icacls %s /setowner *S-1-5-32-544) if you trust what is in it", path, owner, path)
}

// isAdministrator tells whether something of sid's is SYSTEM's or the
// administrators'.
func isAdministrator(sid *windows.SID) bool {
	return sid.IsWellKnown(windows.WinLocalSystemSid) || sid.IsWellKnown(windows.WinBuiltinAdministratorsSid)
}
