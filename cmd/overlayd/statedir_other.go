//go:build !windows

package main

// secureStateDir does nothing: whoever writes there makes folder and files with
// a mode that keeps others out.
func secureStateDir(string) error { return nil }
