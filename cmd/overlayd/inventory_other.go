//go:build !linux

package main

import (
	"errors"
	"fmt"
)

// takeInventory is for Linux.
func takeInventory() (inventory, error) {
	return nil, fmt.Errorf("look for what is ours: %w", errors.ErrUnsupported)
}
