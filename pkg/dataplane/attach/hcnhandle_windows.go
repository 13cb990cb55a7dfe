package attach

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/windows"
)

// OpenNamespace keeps a namespace open until the handle is closed. hcsshim, which
// opens and closes one for each call, has nothing for that. (HcnOpenNamespace and
// HcnCloseNamespace in computenetwork.h.)
func (hcsshim) OpenNamespace(id string) (io.Closer, error) {
	guid, err := windows.GUIDFromString("{" + id + "}")
	if err != nil {
		return nil, fmt.Errorf("%q is no GUID: %w", id, err)
	}
	library := windows.NewLazySystemDLL("computenetwork.dll")
	open, closing := library.NewProc("HcnOpenNamespace"), library.NewProc("HcnCloseNamespace")
	if err := errors.Join(open.Find(), closing.Find()); err != nil {
		return nil, err
	}
	var namespace uintptr
	var record *uint16 // what HCN says of an error, in memory that is ours to free
	result, _, _ := open.Call(uintptr(unsafe.Pointer(&guid)), uintptr(unsafe.Pointer(&namespace)), uintptr(unsafe.Pointer(&record)))
	defer windows.CoTaskMemFree(unsafe.Pointer(record))
	if err := resultOf(result); err != nil {
		return nil, fmt.Errorf("HcnOpenNamespace: %w: %s", err, windows.UTF16PtrToString(record))
	}
	return namespaceHandle{namespace, closing}, nil
}

// namespaceHandle is an HCN_NAMESPACE.
type namespaceHandle struct {
	namespace uintptr
	closing   *windows.LazyProc
}

// Close closes the handle; the namespace stays.
func (h namespaceHandle) Close() error {
	result, _, _ := h.closing.Call(h.namespace)
	if err := resultOf(result); err != nil {
		return fmt.Errorf("HcnCloseNamespace: %w", err)
	}
	return nil
}

// resultOf is the error in an HRESULT, with the meaning that hcnAPI promises.
func resultOf(result uintptr) error {
	const failed, ofWin32 = 1 << 31, 0x8007 // SEVERITY_ERROR, and with it FACILITY_WIN32
	code := uint32(result)
	if code&failed == 0 {
		return nil
	}
	if code>>16 == ofWin32 {
		code &= 0xffff
	}
	err := windows.Errno(code)
	if err == windows.ERROR_NOT_FOUND {
		return fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return err
}
