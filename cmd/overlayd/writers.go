package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// This file reads security descriptors of files as text: SDDL, [MS-DTYP] 2.5.1.

const (
	// rightsToReplace are those by which a folder, or what is in it, can be taken away
	// and another be put in its place: FILE_DELETE_CHILD, DELETE, WRITE_DAC,
	// WRITE_OWNER and GENERIC_ALL.
	rightsToReplace = 0x40 | 0x10000 | 0x40000 | 0x80000 | 0x10000000
	// rightsToWrite are those and FILE_WRITE_DATA (of a folder FILE_ADD_FILE),
	// FILE_APPEND_DATA (FILE_ADD_SUBDIRECTORY) and GENERIC_WRITE.
	rightsToWrite = rightsToReplace | 0x2 | 0x4 | 0x40000000
)

// trustedInstaller owns what belongs to Windows.
const trustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"

// trusted tells whether a trustee may write whatever he wants anyway: SYSTEM, the
// administrators, whom the one administrator's account (LA) is one of, and Windows.
func trusted(trustee string) bool {
	return slices.Contains([]string{"SY", "BA", "LA", "S-1-5-18", "S-1-5-32-544", trustedInstaller}, trustee)
}

// writersOf names who has any of rights by a descriptor in SDDL, besides those who
// are trusted: as SDDL has them, two letters or a SID. The owner is one of them, as
// he may give himself any right. What is only inherited by what is inside is not
// looked at, nor are refusals.
func writersOf(sddl string, rights uint32) (others []string, err error) {
	owner, rest, found := strings.Cut(strings.TrimPrefix(sddl, "O:"), "D:")
	if !found {
		return nil, fmt.Errorf("%q has no list of access", sddl)
	}
	owner, _, _ = strings.Cut(owner, "G:")
	if !trusted(owner) {
		others = append(others, owner)
	}
	list, _, _ := strings.Cut(rest, "S:(") // of what is logged
	flags, entries, found := strings.Cut(list, "(")
	switch {
	case strings.Contains(flags, "NO_ACCESS_CONTROL"):
		return append(others, "everybody"), nil
	case !found: // an empty list lets nobody in
		return others, nil
	}
	for entry := range strings.SplitSeq(strings.TrimSuffix(entries, ")"), ")(") {
		fields := strings.Split(entry, ";")
		const kind, inheritance, mask, trustee, least = 0, 1, 2, 5, 6
		if len(fields) < least {
			return nil, fmt.Errorf("entry %q of %q", entry, sddl)
		}
		if !strings.HasPrefix(fields[kind], "A") && !strings.HasPrefix(fields[kind], "XA") || strings.Contains(fields[inheritance], "IO") {
			continue
		}
		have, err := rightsOf(fields[mask])
		if err != nil {
			return nil, err
		}
		if have&rights != 0 && !trusted(fields[trustee]) && !slices.Contains(others, fields[trustee]) {
			others = append(others, fields[trustee])
		}
	}
	return others, nil
}

// rightsOf is a mask as SDDL has it: a number, or words of two letters.
func rightsOf(text string) (mask uint32, err error) {
	if strings.HasPrefix(text, "0x") || strings.HasPrefix(text, "0X") {
		number, err := strconv.ParseUint(text[2:], 16, 32)
		return uint32(number), err
	}
	words := map[string]uint32{
		"GA": 0x10000000, "GX": 0x20000000, "GW": 0x40000000, "GR": 0x80000000,
		"SD": 0x10000, "RC": 0x20000, "WD": 0x40000, "WO": 0x80000,
		"FA": 0x1f01ff, "FR": 0x120089, "FW": 0x120116, "FX": 0x1200a0,
		"CC": 0x1, "DC": 0x2, "LC": 0x4, "SW": 0x8, "RP": 0x10, "WP": 0x20, "DT": 0x40, "LO": 0x80, "CR": 0x100,
	}
	for rest := text; rest != ""; rest = rest[2:] {
		if len(rest) < 2 || words[rest[:2]] == 0 {
			return 0, fmt.Errorf("rights %q", text)
		}
		mask |= words[rest[:2]]
	}
	return mask, nil
}
