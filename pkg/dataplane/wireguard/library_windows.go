package wireguard

import (
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

// drivers are the logs of the drivers, which are the process's.
var drivers struct{ kernel, userspace driverLog } //nolint:gochecknoglobals // Windows frees no callbacks, so all devices of the process share them

// logTo passes what the driver says on to log, instead of the log before.
func (l library) logTo(module windows.Handle, to *driverLog, log *slog.Logger) error {
	set, err := windows.GetProcAddress(module, l.setLogger)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", l.setLogger, l.file, err)
	}
	callback := to.to(log, l.file, func(say func(level uint, line string)) uintptr {
		return windows.NewCallback(func(level, _ uintptr, line *uint16) uintptr {
			say(uint(level), windows.UTF16PtrToString(line))
			return 0
		})
	})
	_, _, _ = syscall.SyscallN(set, callback) // it returns nothing
	return nil
}
