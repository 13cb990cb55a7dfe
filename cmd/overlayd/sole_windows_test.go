package main

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
)

func TestOneHoldsTheMutex(t *testing.T) {
	name := `Global\zlayer-test-` + rand.Text()
	for range 2 {
		held, err := holdMutex(name)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := holdMutex(name); !errors.Is(err, errInCharge) {
			t.Errorf("held twice: %v, %v", second, err)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever makes the mutex first, open to all, is not taken for a daemon.
func TestMutexOfAStranger(t *testing.T) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if user.User.Sid.IsWellKnown(windows.WinLocalSystemSid) {
		t.Skip("runs as SYSTEM, who is no stranger")
	}
	descriptor, err := windows.SecurityDescriptorFromString("O:" + user.User.Sid.String() + "D:(A;;GA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	name := `Global\zlayer-test-` + rand.Text()
	his, err := windows.CreateMutex(attributes, false, windows.StringToUTF16Ptr(name))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = windows.CloseHandle(his) }()
	if _, err := holdMutex(name); err == nil || errors.Is(err, errInCharge) || !strings.Contains(err.Error(), "belongs to") {
		t.Errorf("error %v", err)
	}
}
