package wireguard

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/windows"
)

// load loads the library from the folder of the program or System32 and nowhere
// else: in a working directory anybody could have put one. Those who load it later
// by its name alone get this one.
func (l library) load() (windows.Handle, error) {
	module, err := windows.LoadLibraryEx(l.file, 0, windows.LOAD_LIBRARY_SEARCH_APPLICATION_DIR|windows.LOAD_LIBRARY_SEARCH_SYSTEM32)
	if err != nil {
		program, _ := os.Executable() // only to say where
		return 0, l.missing(filepath.Dir(program), err)
	}
	return module, nil
}

// logTo passes what the driver says on to log, without anything that could be a
// key. Windows has room for some 2000 callbacks and frees none, so this is for once
// a device.
func (l library) logTo(module windows.Handle, log *slog.Logger) error {
	set, err := windows.GetProcAddress(module, l.setLogger)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", l.setLogger, l.file, err)
	}
	redact, file := redactor(), l.file
	callback := windows.NewCallback(func(level, _ uintptr, line *uint16) uintptr {
		log.Log(context.Background(), driverLevel(uint(level)), "driver", "op", file, "detail", redact(windows.UTF16PtrToString(line)))
		return 0
	})
	_, _, _ = syscall.SyscallN(set, callback) // it returns nothing
	return nil
}
