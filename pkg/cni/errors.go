package cni

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// The error codes of this plugin beyond those of the CNI specification.
//
//	cause                                                code
//	----------------------------------------------------------------------------
//	configuration of an unsupported cniVersion              1  incompatible version
//	key that asks for what overlayd decides                 2  unsupported field
//	missing or malformed CNI_* variable                     4  environment
//	stdin without end, tombstone that cannot be written     5  I/O
//	configuration that is not JSON or of wrong types        6  decoding
//	value that makes no sense, here or to overlayd          7  network configuration
//	CNI_NETNS that is no sandbox                            8  (skel's code for it)
//	overlayd away, not ready, or too slow to answer        11  try again later
//	STATUS: no ADD would be served                         50  not available
//	STATUS: nor is the overlay up for the pods there are   51  limited connectivity
//	no address is left                                    100  CodeExhausted
//	interface or wished address is taken                  101  CodeConflict
//	CHECK found something missing or changed              102  CodeChanged
//	overlayd lacks the operation                          103  CodeTooOld
//	anything else that failed in overlayd                 104  CodeDaemon
//
// Code 3 (unknown container) is never used: it would tell the runtime that no
// DEL is needed.
const (
	// CodeExhausted tells that no address is left for the sandbox.
	CodeExhausted uint = 100 + iota
	// CodeConflict tells that the interface name or a wished address is taken.
	CodeConflict
	// CodeChanged tells what CHECK found other than as ADD left it.
	CodeChanged
	// CodeTooOld tells that overlayd does not know the operation.
	CodeTooOld
	// CodeDaemon tells of an error in overlayd with no better code.
	CodeDaemon
)

// away tells whether err means that overlayd could not be talked to, and so
// may not have heard.
func away(err error) bool { return errors.Is(err, shim.ErrUnreachable) }

// cniError turns err, which came of doing what, into an error with a CNI code.
func cniError(doing string, err error) error {
	if err == nil {
		return nil
	}
	return types.NewError(codeOf(err), doing, err.Error())
}

func codeOf(err error) uint {
	var answer *shim.Error
	switch {
	case away(err), errors.Is(err, context.DeadlineExceeded):
		return types.ErrTryAgainLater
	case !errors.As(err, &answer):
		return CodeDaemon
	}
	switch answer.Code {
	case shim.CodeInvalid:
		return types.ErrInvalidNetworkConfig
	case shim.CodeExhausted:
		return CodeExhausted
	case shim.CodeConflict:
		return CodeConflict
	case shim.CodeUnavailable:
		return types.ErrTryAgainLater
	case shim.CodeUnsupported:
		return CodeTooOld
	default:
		return CodeDaemon
	}
}

// checkError is cniError for CHECK, where what overlayd found is the answer
// and not a failure of overlayd.
func checkError(err error) error {
	var answer *shim.Error
	if errors.As(err, &answer) {
		switch answer.Code {
		case shim.CodeNotFound, shim.CodeConflict, shim.CodeInternal:
			return types.NewError(CodeChanged, "attachment is not as ADD left it", answer.Message)
		}
	}
	return cniError("check sandbox", err)
}

func invalid(key, value, why string) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s %s %s", key, value, why), "")
}

// unsupportedKey names key and value, as the specification wants it.
func unsupportedKey(key, value, why string) error {
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("%s %s: %s", key, value, why), "")
}

func invalidSandbox(path, why string) error {
	return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s: %s", path, why), "")
}

// printError writes err as the specification wants it, with the protocol
// version in use, which skel's own form lacks.
func printError(w io.Writer, cniVersion string, err error) error {
	e, ok := errors.AsType[*types.Error](err)
	if !ok {
		e = types.NewError(types.ErrInternal, err.Error(), "")
	}
	var out jsonWriter
	out.object(func() {
		out.text("cniVersion", cniVersion)
		out.number("code", int(e.Code))
		out.text("msg", e.Msg)
		out.text("details", e.Details)
	})
	_, err = w.Write(append(out.b, '\n'))
	return err
}
