package main

// What Windows knows of who may touch what is the daemon's, as SDDL ([MS-DTYP]
// 2.5.1): owned by the administrators (BA), everything (GA, FA) for them and
// SYSTEM (SY), nothing for others, and nothing inherited (P).
const (
	administratorsOnly = "O:BAD:P(A;;GA;;;SY)(A;;GA;;;BA)"
	// privateFolder passes that on to all files and folders inside (OICI).
	privateFolder = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
)
