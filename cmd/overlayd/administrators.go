package main

import "fmt"

// What Windows knows of who may touch what is the daemon's, as SDDL ([MS-DTYP]
// 2.5.1): owned by the administrators (BA), everything (GA, FA) for them and
// SYSTEM (SY), nothing for others, and nothing inherited (P).
const (
	administratorsOnly = "O:BAD:P(A;;GA;;;SY)(A;;GA;;;BA)"
	// privateFolder passes that on to all files and folders inside (OICI).
	privateFolder = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	privateFile   = "O:BAD:P(A;;FA;;;SY)(A;;FA;;;BA)"
)

// Attributes of files, from winnt.h.
const (
	attributeDirectory = 0x10
	attributeReparse   = 0x400
)

// accessOf is who has access to a file or folder of the daemon's. It refuses what is
// not there alone: a link or a junction, and a file with other names.
func accessOf(path string, attributes, names uint32) (string, error) {
	switch {
	case attributes&attributeReparse != 0:
		return "", fmt.Errorf("%s is a link", path)
	case attributes&attributeDirectory != 0:
		return privateFolder, nil
	case names > 1:
		return "", fmt.Errorf("%s is a file that has %d names", path, names)
	}
	return privateFile, nil
}
