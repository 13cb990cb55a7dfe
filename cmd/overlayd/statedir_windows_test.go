package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
)

// needOwners skips the test where files have no owners of Windows.
func needOwners(t *testing.T) {
	t.Helper()
	if windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil {
		t.Skip("Wine gives every file the user for its owner, as the Unix below has it")
	}
}

// giveAway makes the file or folder at path the property of this process's user, who
// stands in for anybody.
func giveAway(t *testing.T, path string) {
	t.Helper()
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if user.User.Sid.IsWellKnown(windows.WinLocalSystemSid) {
		t.Skip("runs as SYSTEM, who is no stranger")
	}
	if err := windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION, user.User.Sid, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestStateDirIsPrivate(t *testing.T) {
	needOwners(t)
	dir := filepath.Join(t.TempDir(), "parent", "zlayer")
	for range 2 { // made, then taken
		if err := secureStateDir(dir); err != nil {
			t.Fatal(err)
		}
		have, err := windows.GetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(have.String(), "D:PAI(", "D:P("); got != privateFolder {
			t.Errorf("security %s, want %s", got, privateFolder)
		}
		if err := os.WriteFile(filepath.Join(dir, "key"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that somebody let others read, or made before the folder was private.
func TestStateDirTakesFilesBack(t *testing.T) {
	needOwners(t)
	dir := filepath.Join(t.TempDir(), "zlayer")
	if err := secureStateDir(dir); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;BA)(A;;FR;;;BU)")
	if err != nil {
		t.Fatal(err)
	}
	access, _, err := open.DACL()
	if err != nil {
		t.Fatal(err)
	}
	const protected = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION
	if err := windows.SetNamedSecurityInfo(key, windows.SE_FILE_OBJECT, protected, nil, nil, access, nil); err != nil {
		t.Fatal(err)
	}
	if err := secureStateDir(dir); err != nil {
		t.Fatal(err)
	}
	have, err := windows.GetNamedSecurityInfo(key, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(have.String(), "D:PAI(", "D:P("); got != privateFile {
		t.Errorf("security %s, want %s", got, privateFile)
	}
}

// A junction to a folder of SYSTEM's is refused before anything is changed there.
func TestStateDirIsNoJunction(t *testing.T) {
	needOwners(t)
	target, link := t.TempDir(), filepath.Join(t.TempDir(), "zlayer")
	if out, err := exec.Command("cmd", "/c", "mklink", "/J", link, target).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := windows.GetNamedSecurityInfo(target, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	if err := secureStateDir(link); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("error %v, want a refusal", err)
	}
	after, err := windows.GetNamedSecurityInfo(target, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil || after.String() != before.String() {
		t.Errorf("the target had %s, and has %s (%v)", before, after, err)
	}
}

func TestStateDirOfAStranger(t *testing.T) {
	needOwners(t)
	for _, name := range []string{"", "key", "tombstones"} {
		t.Run("his "+name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "zlayer")
			if err := secureStateDir(dir); err != nil {
				t.Fatal(err)
			}
			switch name {
			case "key":
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			case "tombstones":
				if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			giveAway(t, filepath.Join(dir, name))
			if err := secureStateDir(dir); err == nil || !strings.Contains(err.Error(), "belongs to") {
				t.Errorf("error %v, want a refusal", err)
			}
		})
	}
}
