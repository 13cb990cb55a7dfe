//go:build !linux && !windows

package main

import "errors"

func becomeSole() (sole, error) { return nil, errors.ErrUnsupported }
