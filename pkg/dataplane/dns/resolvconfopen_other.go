//go:build !linux

package dns

import (
	"os"
	"path/filepath"
)

// openBelow opens a file of the host whose files are below root.
func openBelow(root, name string) (*os.File, error) { return os.Open(filepath.Join(root, name)) }
