package shim

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheckPipe(t *testing.T) {
	if overlaydPipe != `\\.\pipe\zlayer-overlayd` {
		t.Errorf("%s is not what ZLayer's agent dials", overlaydPipe)
	}
	tests := []struct {
		name, path string
		wantErr    string
	}{
		{name: "the default", path: overlaydPipe},
		{name: "as others may write it", path: `\\.\PIPE\Other`},
		{name: "as long as can be", path: pipePrefix + strings.Repeat("x", longestPipe-len(pipePrefix))},
		{name: "nothing", wantErr: "no named pipe"},
		{name: "a file", path: `C:\ProgramData\zlayer\overlayd.sock`, wantErr: "no named pipe"},
		{name: "a Unix socket", path: "/run/zlayer/overlayd.sock", wantErr: "no named pipe"},
		{name: "another machine's", path: `\\server\pipe\zlayer-overlayd`, wantErr: "no named pipe"},
		{name: "no name", path: pipePrefix, wantErr: "not the name"},
		{name: "a folder", path: pipePrefix + `a\b`, wantErr: "not the name"},
		{name: "a NUL", path: pipePrefix + "a\x00b", wantErr: "not the name"},
		{name: "too long", path: pipePrefix + strings.Repeat("x", longestPipe-len(pipePrefix)+1), wantErr: "257 characters"},
		{name: "too long as UTF-16", path: pipePrefix + strings.Repeat("\U0001F600", 124), wantErr: "257 characters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := checkPipe(tt.path)
			if tt.wantErr == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// TestPipeSecurity reads the descriptor as the system does: who owns the pipe,
// and who else may do what.
func TestPipeSecurity(t *testing.T) {
	owner, rest, _ := strings.Cut(pipeSecurity, "D:")
	if owner != "O:BA" {
		t.Errorf("owner %q, want the administrators: clients refuse others", owner)
	}
	flags, entries, _ := strings.Cut(rest, "(")
	if flags != "P" {
		t.Errorf("flags %q: a list that is not protected may inherit entries", flags)
	}
	got := strings.Split(strings.TrimSuffix(entries, ")"), ")(")
	slices.Sort(got)
	// "A" allows, "GA" is everything, "SY" is SYSTEM, "BA" the administrators.
	if want := []string{"A;;GA;;;BA", "A;;GA;;;SY"}; !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}

func TestABusyPipeIsWaitedForOnce(t *testing.T) {
	if !hopeless(errPipeBusy) {
		t.Error("a pipe that was busy all the time would be waited for again")
	}
	if got, want := dialTime(defaultAttempts), 2500*time.Millisecond; got != want {
		t.Errorf("waits %s for a busy pipe, want %s", got, want)
	}
}
