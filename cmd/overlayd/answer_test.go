package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestAnswerOf(t *testing.T) {
	tests := []struct {
		err       error
		code      shim.Code
		retryable bool
	}{
		{dataplane.ErrNotReady, shim.CodeUnavailable, true},
		{context.DeadlineExceeded, shim.CodeUnavailable, true},
		{context.Canceled, shim.CodeUnavailable, true},
		{ipam.ErrExhausted, shim.CodeExhausted, true},
		{ipam.ErrTaken, shim.CodeConflict, false},
		{attach.ErrExists, shim.CodeConflict, false},
		{attach.ErrConflict, shim.CodeConflict, false},
		{dataplane.ErrConflict, shim.CodeConflict, false},
		{dataplane.ErrLimit, shim.CodeExhausted, true},
		{attach.ErrNotAttached, shim.CodeNotFound, false},
		{dataplane.ErrUnknownPeer, shim.CodeNotFound, false},
		{dataplane.ErrUnknownService, shim.CodeNotFound, false},
		{ipam.ErrOutside, shim.CodeInvalid, false},
		{dataplane.ErrInvalid, shim.CodeInvalid, false},
		{attach.ErrInvalid, shim.CodeInvalid, false},
		{errors.ErrUnsupported, shim.CodeUnsupported, false},
		{errors.New("disk on fire"), shim.CodeInternal, false},
	}
	for _, tt := range tests {
		t.Run(tt.err.Error(), func(t *testing.T) {
			wrapped := fmt.Errorf("attach sandbox x: %w", errors.Join(errors.New("first"), fmt.Errorf("then: %w", tt.err)))
			got := answerOf(&shim.AttachContainer{}, wrapped)
			if got.Code != tt.code || got.Retryable != tt.retryable || !strings.Contains(got.Message, "attach sandbox x: ") {
				t.Errorf("answer %+v, want code %s, retryable %v", got, tt.code, tt.retryable)
			}
		})
	}
}

func TestAnswerOfAnAnswerIsItself(t *testing.T) {
	want := &shim.Error{Code: shim.CodeConflict, Message: "so it is", Retryable: true}
	got := answerOf(&shim.Status{}, fmt.Errorf("on the way: %w", want))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
