package main

import (
	"context"
	"errors"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// answerOf turns an error of the data plane into what goes over the socket.
func answerOf(request shim.Request, err error) *shim.Error {
	var answer *shim.Error
	if errors.As(err, &answer) {
		return answer
	}
	code, retryable := codeOf(err)
	message := err.Error()
	if code == shim.CodeUnsupported {
		message = request.Op() + " is not supported by this version: " + message
	}
	return &shim.Error{Code: code, Message: message, Retryable: retryable}
}

// codeOf classifies an error. A code is retryable where the same request may
// succeed without anybody changing it.
func codeOf(err error) (code shim.Code, retryable bool) {
	switch {
	case errors.Is(err, dataplane.ErrNotReady):
		return shim.CodeUnavailable, true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return shim.CodeUnavailable, true
	case errors.Is(err, ipam.ErrExhausted):
		return shim.CodeExhausted, true
	case errors.Is(err, dataplane.ErrLimit):
		return shim.CodeExhausted, true
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, attach.ErrExists), errors.Is(err, attach.ErrConflict), errors.Is(err, dataplane.ErrConflict):
		return shim.CodeConflict, false
	case errors.Is(err, attach.ErrNotAttached), errors.Is(err, dataplane.ErrUnknownPeer), errors.Is(err, dataplane.ErrUnknownService):
		return shim.CodeNotFound, false
	case errors.Is(err, ipam.ErrOutside), errors.Is(err, dataplane.ErrInvalid), errors.Is(err, attach.ErrInvalid):
		return shim.CodeInvalid, false
	case errors.Is(err, errors.ErrUnsupported):
		return shim.CodeUnsupported, false
	default:
		return shim.CodeInternal, false
	}
}
