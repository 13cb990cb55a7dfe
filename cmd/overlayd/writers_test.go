package main

import (
	"slices"
	"testing"
)

// Descriptors as icacls shows them of Windows Server 2022.
func TestWritersOf(t *testing.T) {
	const (
		programFiles = "O:" + trustedInstaller + "G:SYD:PAI(A;;FA;;;" + trustedInstaller + ")(A;CIIO;GA;;;" + trustedInstaller + ")" +
			"(A;;0x1301bf;;;SY)(A;OICIIO;GA;;;SY)(A;;0x1301bf;;;BA)(A;OICIIO;GA;;;BA)(A;;0x1200a9;;;BU)(A;OICIIO;GXGR;;;BU)(A;OICIIO;GA;;;CO)(A;;0x1200a9;;;AC)"
		root        = "O:" + trustedInstaller + "D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CIIO;DC;;;BU)(A;OICIIO;GA;;;CO)"
		inRoot      = "O:BAG:SYD:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIID;0x1301bf;;;AU)(A;OICIID;0x1200a9;;;BU)"
		programData = "O:SYG:SYD:PAI(A;OICIIO;GA;;;CO)(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)(A;CI;DCLCRPCR;;;BU)"
	)
	for _, tt := range []struct {
		name, sddl string
		rights     uint32
		want       []string
	}{
		{"Program Files", programFiles, rightsToWrite, nil},
		{"a folder of administrators", privateFolder, rightsToWrite, nil},
		{"a folder made below C:", inRoot, rightsToWrite, []string{"AU"}},
		{"and its own folders", inRoot, rightsToReplace, []string{"AU"}},
		{"C: itself, where all may make folders", root, rightsToWrite, []string{"BU"}},
		{"but replace none", root, rightsToReplace, nil},
		{"ProgramData, where all may make files", programData, rightsToReplace, nil},
		{"a user's", "O:S-1-5-21-1-2-3-1001D:(A;;FA;;;SY)", rightsToWrite, []string{"S-1-5-21-1-2-3-1001"}},
		{"by words", "O:BAD:(A;;CCDCLC;;;WD)(A;;FR;;;BU)", rightsToWrite, []string{"WD"}},
		{"refused", "O:BAD:(D;;FA;;;WD)(A;;FX;;;WD)", rightsToWrite, nil},
		{"on a condition", `O:BAD:(XA;;FA;;;WD;(@User.Title=="PM"))`, rightsToWrite, []string{"WD"}},
		{"logged", "O:BAD:(A;;FA;;;SY)S:(AU;SA;FA;;;WD)", rightsToWrite, nil},
		{"no list", "O:BAD:NO_ACCESS_CONTROL", rightsToWrite, []string{"everybody"}},
		{"an empty list", "O:BAD:P", rightsToWrite, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := writersOf(tt.sddl, tt.rights)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%v (%v), want %v", got, err, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "O:BA", "O:BAD:(A;;FA)", "O:BAD:(A;;QQ;;;WD)", "O:BAD:(A;;F;;;WD)", "O:BAD:(A;;0xg;;;WD)"} {
		if got, err := writersOf(bad, rightsToWrite); err == nil {
			t.Errorf("%q: %v and no error", bad, got)
		}
	}
}
