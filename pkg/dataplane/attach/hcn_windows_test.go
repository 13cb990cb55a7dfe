package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/Microsoft/hcsshim/hcn"
)

// hcsshim's types marshal to the golden files that ours are compared with, and
// lose nothing of ours.
func TestHcsshimDocuments(t *testing.T) {
	for name, document := range hcnDocuments() {
		var theirs any
		var err error
		switch document := document.(type) {
		case hcnNetwork:
			theirs, err = convert[hcn.HostComputeNetwork](document, nil)
		case hcnEndpoint:
			theirs, err = convert[hcn.HostComputeEndpoint](document, nil)
		case hcnNamespace:
			theirs, err = convert[hcn.HostComputeNamespace](document, nil)
		case hcnNamespaceChange:
			theirs, err = convert[hcn.ModifyNamespaceSettingRequest](document, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		hcnGolden(t, name, indented(t, theirs))
	}
}

func TestWellKnown(t *testing.T) {
	tests := []struct {
		name string
		give error
		want error
	}{
		{"no network", hcn.NetworkNotFoundError{NetworkID: "x"}, fs.ErrNotExist},
		{"no endpoint", hcn.EndpointNotFoundError{EndpointID: "x"}, fs.ErrNotExist},
		{"no namespace", fmt.Errorf("look: %w", hcn.NamespaceNotFoundError{NamespaceID: "x"}), fs.ErrNotExist},
		{"other", os.ErrPermission, os.ErrPermission},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := wellKnown(tt.give)
			if !errors.Is(got, tt.give) || !errors.Is(got, tt.want) {
				t.Errorf("got %v", got)
			}
		})
	}
	if err := wellKnown(nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
