//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program to run from start to exit.
type process struct {
	path  string
	env   []string
	stdin []byte
}

// spawned is a process whose files are ready, so that only the process itself
// is timed.
type spawned struct {
	path                  string
	env                   []string
	stdin, stdout, stderr *os.File
}

// ready prepares the files. Memory files need no goroutine to copy them, unlike
// os/exec's pipes.
func (p process) ready() (*spawned, error) {
	s := &spawned{path: p.path, env: p.env}
	for _, file := range []**os.File{&s.stdin, &s.stdout, &s.stderr} {
		handle, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("run %s: %w", p.path, err)
		}
		*file = os.NewFile(uintptr(handle), "bench")
	}
	if _, err := s.stdin.WriteAt(p.stdin, 0); err != nil {
		s.close()
		return nil, fmt.Errorf("run %s: %w", p.path, err)
	}
	return s, nil
}

func (s *spawned) close() {
	for _, file := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if file != nil {
			_ = file.Close() // memory
		}
	}
}

// run starts the process in the calling thread's namespaces and waits for it.
// The time is from the call to the exit.
func (s *spawned) run() (time.Duration, error) {
	started := time.Now()
	child, err := os.StartProcess(s.path, []string{s.path}, &os.ProcAttr{Env: s.env, Files: []*os.File{s.stdin, s.stdout, s.stderr}})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", s.path, err)
	}
	state, err := child.Wait()
	took := time.Since(started)
	if err == nil && !state.Success() {
		err = fmt.Errorf("%v: %s", state, s.complaint())
	}
	if err != nil {
		return took, fmt.Errorf("run %s: %w", s.path, err)
	}
	return took, nil
}

// output returns what the process wrote to stdout.
func (s *spawned) output() ([]byte, error) { return contents(s.stdout) }

// complaint is what it wrote at all: plugins put errors on stdout.
func (s *spawned) complaint() string {
	out, _ := contents(s.stdout)
	complaint, _ := contents(s.stderr)
	return strings.TrimSpace(string(out) + " " + string(complaint))
}

func contents(file *os.File) ([]byte, error) {
	var all bytes.Buffer
	_, err := io.Copy(&all, io.NewSectionReader(file, 0, 1<<20))
	return all.Bytes(), err
}
